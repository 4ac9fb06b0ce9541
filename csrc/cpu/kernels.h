// Inner loops that are compiled once for each instruction set; the best one that the processor has
// is chosen at the first call.
#pragma once

#include <cstdint>

namespace instseg {

// bfloat16 and float16 as they lie in memory.
struct BFloat16 {
  uint16_t bits;
};
using Float16 = _Float16;

// What values of a type are summed in.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

template <typename T>
struct RowKernels {
  using A = accumulate_t<T>;

  // out[c] = sum over e of weights[e] * base[offsets[e] + c], for c in 0..channels-1.
  void (*weighted_sum)(const T* base, const int64_t* offsets, const A* weights, int64_t count,
                       int64_t channels, T* out);
  // The same, added to out.
  void (*add_weighted_sum)(const T* base, const int64_t* offsets, const A* weights, int64_t count,
                           int64_t channels, A* out);
  // out[c * out_stride + r] = in[r * in_stride + c].
  void (*transpose)(const T* in, int64_t rows, int64_t columns, int64_t in_stride, T* out,
                    int64_t out_stride);
  // out[i] = in[i], rounded.
  void (*narrow)(const A* in, int64_t count, T* out);
};

struct ScalarKernels {
  // Boxes as five rows of `stride` values: x1, y1, x2, y2, area. Whether one of the first `count`
  // has an IoU above the threshold with the box given.
  bool (*overlaps_any)(const float* boxes, int64_t stride, int64_t count, const float* box,
                       float threshold);
  void (*focal_loss)(const float* logits, const float* targets, int64_t count, float alpha,
                     float gamma, float* loss);
  void (*focal_loss_grad)(const float* grad, int64_t grad_stride, const float* logits,
                          const float* targets, int64_t count, float alpha, float gamma,
                          float* out);
};

template <typename T>
const RowKernels<T>& row_kernels();
const ScalarKernels& scalar_kernels();

}  // namespace instseg
