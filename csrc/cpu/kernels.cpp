// The inner loops, compiled with -DINSTSEG_ISA=baseline|avx2|avx512 and the flags of that set.
// Nothing of the standard library is used here: an inline function of it, compiled for AVX-512,
// could be the copy that the linker keeps for everyone.
#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace instseg::INSTSEG_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kBlock = 16;  // of 32 registers
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kBlock = 8;  // of 16 registers
#else
constexpr int kBytes = 16;
constexpr int kBlock = 8;
#endif

using floats = float __attribute__((vector_size(kBytes)));
using doubles = double __attribute__((vector_size(kBytes)));
using words = uint32_t __attribute__((vector_size(kBytes)));
using ints = int32_t __attribute__((vector_size(kBytes)));
using half_words = uint16_t __attribute__((vector_size(kBytes / 2)));
using halves = _Float16 __attribute__((vector_size(kBytes / 2)));

// --- loads and stores that convert ---------------------------------------------------------------

template <typename V, typename T>
inline V load_raw(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline floats load(const float* p) { return load_raw<floats>(p); }
inline doubles load(const double* p) { return load_raw<doubles>(p); }
inline floats load(const BFloat16* p) {
  const words w = __builtin_convertvector(load_raw<half_words>(p), words) << 16;
  return (floats)w;
}
inline floats load(const Float16* p) {
  return __builtin_convertvector(load_raw<halves>(p), floats);
}

inline void store(float* p, floats v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(double* p, doubles v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, floats v) {
  words w = (words)v;
  w += 0x7fffu + ((w >> 16) & 1u);  // to the nearest, ties to even
  w >>= 16;
  const ints nan = v != v;
  w = (w & ~(words)nan) | ((words)nan & 0x7fc0u);
  const half_words h = __builtin_convertvector(w, half_words);
  __builtin_memcpy(p, &h, sizeof h);
}
inline void store(Float16* p, floats v) {
  const halves h = __builtin_convertvector(v, halves);
  __builtin_memcpy(p, &h, sizeof h);
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) {
  const uint32_t w = uint32_t(v.bits) << 16;
  float f;
  __builtin_memcpy(&f, &w, sizeof f);
  return f;
}
inline float widen(Float16 v) { return float(v); }

inline void put(float* p, float v) { *p = v; }
inline void put(double* p, double v) { *p = v; }
inline void put(Float16* p, float v) { *p = Float16(v); }
inline void put(BFloat16* p, float v) {
  uint32_t w;
  __builtin_memcpy(&w, &v, sizeof w);
  p->bits = v != v ? 0x7fc0 : uint16_t((w + 0x7fffu + ((w >> 16) & 1u)) >> 16);
}

template <typename A>
struct VectorOf {
  using type = floats;
};
template <>
struct VectorOf<double> {
  using type = doubles;
};

// --- weighted sums of rows -----------------------------------------------------------------------

// One block of N vectors of channels, held in registers over all rows.
template <int N, bool kAdd, typename T, typename A, typename Out>
inline void sum_block(const T* base, const int64_t* offsets, const A* weights, int64_t count,
                      Out* out) {
  using V = typename VectorOf<A>::type;
  constexpr int lanes = sizeof(V) / sizeof(A);
  V sum[N];
#pragma GCC unroll 16
  for (int v = 0; v < N; ++v) {
    if constexpr (kAdd) {
      sum[v] = load(out + v * lanes);
    } else {
      sum[v] = V{};
    }
  }
  for (int64_t e = 0; e < count; ++e) {
    const T* row = base + offsets[e];
    const A w = weights[e];
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) sum[v] += w * load(row + v * lanes);
  }
#pragma GCC unroll 16
  for (int v = 0; v < N; ++v) store(out + v * lanes, sum[v]);
}

template <bool kAdd, typename T, typename A, typename Out>
inline void sum_rows(const T* base, const int64_t* offsets, const A* weights, int64_t count,
                     int64_t channels, Out* out) {
  constexpr int lanes = kBytes / sizeof(A);
  int64_t c = 0;
  for (; c + kBlock * lanes <= channels; c += kBlock * lanes) {
    sum_block<kBlock, kAdd>(base + c, offsets, weights, count, out + c);
  }
  for (; c + 4 * lanes <= channels; c += 4 * lanes) {
    sum_block<4, kAdd>(base + c, offsets, weights, count, out + c);
  }
  for (; c + lanes <= channels; c += lanes) {
    sum_block<1, kAdd>(base + c, offsets, weights, count, out + c);
  }
  for (; c < channels; ++c) {
    A sum = 0;
    if constexpr (kAdd) sum = out[c];
    for (int64_t e = 0; e < count; ++e) sum += weights[e] * widen(base[offsets[e] + c]);
    put(out + c, sum);
  }
}

template <typename T>
void weighted_sum(const T* base, const int64_t* offsets, const accumulate_t<T>* weights,
                  int64_t count, int64_t channels, T* out) {
  sum_rows<false>(base, offsets, weights, count, channels, out);
}

template <typename T>
void add_weighted_sum(const T* base, const int64_t* offsets, const accumulate_t<T>* weights,
                      int64_t count, int64_t channels, accumulate_t<T>* out) {
  sum_rows<true>(base, offsets, weights, count, channels, out);
}

template <typename T>
void narrow(const accumulate_t<T>* in, int64_t count, T* out) {
  constexpr int lanes = kBytes / sizeof(accumulate_t<T>);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(out + i, load(in + i));
  for (; i < count; ++i) put(out + i, in[i]);
}

// --- transposition -------------------------------------------------------------------------------

// A square of kLanes x kLanes floats: log2(kLanes) rounds of exchanges between pairs of rows.
constexpr int kLanes = kBytes / 4;

template <int kStep>
inline void exchange(floats* rows) {
  ints low, high;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    low[i] = (i & kStep) ? kLanes + (i ^ kStep) : i;
    high[i] = (i & kStep) ? kLanes + i : (i ^ kStep);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const floats a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + kStep] = __builtin_shuffle(a, b, high);
  }
}

inline void transpose_square(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(in + i * in_stride);
  exchange<1>(rows);
  exchange<2>(rows);
  if constexpr (kLanes > 4) exchange<4>(rows);
  if constexpr (kLanes > 8) exchange<8>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(out + i * out_stride, rows[i]);
}

template <typename T>
inline void transpose_part(const T* in, int64_t rows, int64_t columns, int64_t in_stride, T* out,
                           int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

template <typename T>
void transpose(const T* in, int64_t rows, int64_t columns, int64_t in_stride, T* out,
               int64_t out_stride) {
  // Squares that fit in the first cache whatever the type.
  constexpr int64_t side = 16;
  for (int64_t r = 0; r < rows; r += side) {
    const int64_t height = rows - r < side ? rows - r : side;
    for (int64_t c = 0; c < columns; c += side) {
      const int64_t width = columns - c < side ? columns - c : side;
      transpose_part(in + r * in_stride + c, height, width, in_stride, out + c * out_stride + r,
                     out_stride);
    }
  }
}

template <>
void transpose<float>(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out,
                      int64_t out_stride) {
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes) {
    const float* from = in + r * in_stride;
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      transpose_square(from + c, in_stride, out + c * out_stride + r, out_stride);
    }
    transpose_part(from + c, kLanes, columns - c, in_stride, out + c * out_stride + r, out_stride);
  }
  transpose_part(in + r * in_stride, rows - r, columns, in_stride, out + r, out_stride);
}

// --- overlaps ------------------------------------------------------------------------------------

inline floats smaller(floats a, floats b) { return a < b ? a : b; }
inline floats larger(floats a, floats b) { return a > b ? a : b; }

inline bool any(ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

bool overlaps_any(const float* boxes, int64_t stride, int64_t count, const float* box,
                  float threshold) {
  // A product finds the few pairs for which the quotient, the definition, is worth its time.
  const float near = threshold * (1 - 1e-5f);
  const floats zero = {};
  const float x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3], area = box[4];
  for (int64_t i = 0; i < count; i += kLanes) {  // rows are padded with empty boxes
    const float* b = boxes + i;
    const floats w = smaller(load(b + 2 * stride), zero + x2) - larger(load(b), zero + x1);
    const floats h = smaller(load(b + 3 * stride), zero + y2) - larger(load(b + stride), zero + y1);
    const floats inter = larger(w, zero) * larger(h, zero);
    const floats both = load(b + 4 * stride) + area - inter;
    if (any(inter > near * both) && any((inter / both) > threshold)) return true;
  }
  return false;
}

// --- focal loss ----------------------------------------------------------------------------------

inline floats splat(float v) { return floats{} + v; }

// exp(v) for v <= 0, to about 1e-7 of itself; 0 below the normal numbers.
inline floats exp_negative(floats v) {
  const floats clamped = larger(v, splat(-87.0f));
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
  const floats magic = splat(12582912.0f);
  const floats whole = (clamped * 1.44269504f + magic) - magic;
  const floats r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
  floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
  const floats result = p * (floats)power;
  return v < -87.0f ? floats{} : result;
}

// log(1 + z) for z in [0, 1]: the series of 2 artanh(s) with s = z / (2 + z) <= 1/3.
inline floats log1p_unit(floats z) {
  const floats s = z / (2.0f + z);
  const floats q = s * s;
  floats p = splat(1.0f / 15);
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

inline floats power(floats base, float exponent) {
  if (exponent == 2.0f) return base * base;
  if (exponent == 1.0f) return base;
  floats out;
  for (int l = 0; l < kLanes; ++l) out[l] = __builtin_powf(base[l], exponent);
  return out;
}

struct Focal {
  floats p;        // sigmoid(x)
  floats q;        // 1 - p, without cancellation
  floats slope;    // p (1 - p)
  floats entropy;  // binary cross entropy
  floats miss;     // 1 - p_t
  floats alpha;    // alpha_t
};

inline Focal focal(floats x, floats t, float alpha) {
  const floats z = exp_negative(x < 0.0f ? x : -x);
  const floats inverse = 1.0f / (1.0f + z);
  const floats p = x < 0.0f ? z * inverse : inverse;
  const floats q = x < 0.0f ? inverse : z * inverse;
  const floats entropy = larger(x, floats{}) - x * t + log1p_unit(z);
  const floats weight = alpha < 0 ? splat(1.0f) : alpha * t + (1 - alpha) * (1.0f - t);
  return {p, q, z * inverse * inverse, entropy, p * (1.0f - t) + q * t, weight};
}

inline floats focal_value(floats x, floats t, float alpha, float gamma) {
  const Focal f = focal(x, t, alpha);
  return f.alpha * f.entropy * power(f.miss, gamma);
}

inline floats focal_slope(floats x, floats t, float alpha, float gamma) {
  const Focal f = focal(x, t, alpha);
  const floats direct = power(f.miss, gamma) * (f.p * (1.0f - t) - f.q * t);
  floats through = f.entropy * f.slope * (1.0f - 2.0f * t);
  through *= gamma == 0.0f ? floats{} : gamma * power(f.miss, gamma - 1);
  // With gamma < 1 the power is infinite at a certain hit, where the slope is 0.
  return f.alpha * (direct + (f.slope == 0.0f ? floats{} : through));
}

// Calls f(i, count) for each full vector, and once for what is left, padded.
template <typename F>
inline void for_vectors(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, int(count - i));
}

inline floats load_part(const float* p, int count) {
  if (count == kLanes) return load(p);
  floats v = {};
  __builtin_memcpy(&v, p, count * sizeof(float));
  return v;
}

inline void store_part(float* p, floats v, int count) {
  if (count == kLanes) return store(p, v);
  __builtin_memcpy(p, &v, count * sizeof(float));
}

void focal_loss(const float* logits, const float* targets, int64_t count, float alpha, float gamma,
                float* loss) {
  for_vectors(count, [&](int64_t i, int n) {
    const floats x = load_part(logits + i, n), t = load_part(targets + i, n);
    store_part(loss + i, focal_value(x, t, alpha, gamma), n);
  });
}

void focal_loss_grad(const float* grad, int64_t grad_stride, const float* logits,
                     const float* targets, int64_t count, float alpha, float gamma, float* out) {
  for_vectors(count, [&](int64_t i, int n) {
    const floats x = load_part(logits + i, n), t = load_part(targets + i, n);
    const floats g = grad_stride == 0 ? splat(*grad) : load_part(grad + i, n);
    store_part(out + i, g * focal_slope(x, t, alpha, gamma), n);
  });
}

}  // namespace

#define INSTSEG_ROWS(NAME, T)                                                               \
  extern const RowKernels<T> NAME;                                                          \
  const RowKernels<T> NAME = {weighted_sum<T>, add_weighted_sum<T>, transpose<T>, narrow<T>};

INSTSEG_ROWS(rows_f32, float)
INSTSEG_ROWS(rows_f64, double)
INSTSEG_ROWS(rows_bf16, BFloat16)
INSTSEG_ROWS(rows_f16, Float16)

extern const ScalarKernels scalars;
const ScalarKernels scalars = {overlaps_any, focal_loss, focal_loss_grad};

}  // namespace instseg::INSTSEG_ISA
