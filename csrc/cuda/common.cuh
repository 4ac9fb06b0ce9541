// What the launchers share: the stream, dtypes, and loads of several elements at once.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace instseg {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// In what sums, positions and weights are computed.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

// V elements that are loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <typename T, int V>
__device__ inline Pack<T, V> load(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <typename T, int V>
__device__ inline void store(T* to, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Whether rows of `length` elements can be read in packs of `bytes`.
inline bool packs(const void* data, int64_t length, size_t element, size_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && length * element % bytes == 0;
}

template <typename I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// Makes a tensor's device the current one, and knows its stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) {
    const int32_t index = tensor.get_device_index();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_cuda_guard(index, &guard_));
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  ~OnDevice() { aoti_torch_delete_cuda_guard(guard_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int64_t groups, int threads,
              Arguments&&... arguments) const {
    if (blocks == 0 || groups == 0) return;
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max() && groups <= 65535,
                    "too large for one launch: ", blocks, " x ", groups, " blocks");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks), unsigned(groups));
    config.blockDim = dim3(unsigned(threads));
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
  }

 private:
  CUDAGuardHandle guard_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// Calls `run` with a value of the C++ type of a floating dtype.
template <typename Run>
void dispatch(ScalarType type, Run&& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Double:
      return run(double{});
    case ScalarType::Half:
      return run(Half{});
    case ScalarType::BFloat16:
      return run(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "expected a floating tensor, got ", torch::headeronly::toString(type));
  }
}

inline Tensor empty(std::vector<int64_t> size, ScalarType type, const Tensor& like,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(size, type, std::nullopt, like.device(), std::nullopt, format);
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

}  // namespace instseg
