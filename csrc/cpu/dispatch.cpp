// Which build of the inner loops runs on this processor.
#include "kernels.h"

#define INSTSEG_DECLARE(ISA)                     \
  namespace instseg::ISA {                       \
  extern const RowKernels<float> rows_f32;       \
  extern const RowKernels<double> rows_f64;      \
  extern const RowKernels<BFloat16> rows_bf16;   \
  extern const RowKernels<Float16> rows_f16;     \
  extern const ScalarKernels scalars;            \
  }

INSTSEG_DECLARE(baseline)
#if defined(__x86_64__)
INSTSEG_DECLARE(avx2)
INSTSEG_DECLARE(avx512)
#endif

namespace instseg {
namespace {

enum class Isa { baseline, avx2, avx512 };

Isa best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

template <typename K>
const K& choose(const K& baseline, const K& avx2, const K& avx512) {
  static const Isa isa = best();
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : baseline;
}

}  // namespace

#if defined(__x86_64__)
#define INSTSEG_CHOOSE(NAME) choose(baseline::NAME, avx2::NAME, avx512::NAME)
#else
#define INSTSEG_CHOOSE(NAME) baseline::NAME
#endif

template <>
const RowKernels<float>& row_kernels() {
  return INSTSEG_CHOOSE(rows_f32);
}
template <>
const RowKernels<double>& row_kernels() {
  return INSTSEG_CHOOSE(rows_f64);
}
template <>
const RowKernels<BFloat16>& row_kernels() {
  return INSTSEG_CHOOSE(rows_bf16);
}
template <>
const RowKernels<Float16>& row_kernels() {
  return INSTSEG_CHOOSE(rows_f16);
}
const ScalarKernels& scalar_kernels() { return INSTSEG_CHOOSE(scalars); }

}  // namespace instseg
