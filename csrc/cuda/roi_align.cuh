// What forward and backward of RoIAlign share on the host.
#pragma once

#include "common.cuh"
#include "geometry.cuh"

namespace instseg {

// Levels of `sizes` H0, W0, H1, W1, ..., whose data a caller fills in.
template <typename T, typename R>
Pyramid<T, R> pyramid_of(const std::vector<int64_t>& sizes, const std::vector<double>& scales,
                         int64_t batch, int64_t channels) {
  STD_TORCH_CHECK(scales.size() <= MAX_LEVELS && sizes.size() == 2 * scales.size(),
                  "expected at most ", MAX_LEVELS, " levels with a scale each, got ",
                  sizes.size() / 2, " levels and ", scales.size(), " scales");
  Pyramid<T, R> pyramid{};
  pyramid.count = int(scales.size());
  pyramid.batch = batch;
  pyramid.channels = channels;
  for (int l = 0; l < pyramid.count; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    STD_TORCH_CHECK(height < (1 << 30) && width < (1 << 30),
                    "a feature map of ", height, " x ", width, " pixels is too large");
    pyramid.levels[l] = {nullptr, int(height), int(width), R(scales[l])};
  }
  return pyramid;
}

inline const int64_t* data_or_null(const std::optional<Tensor>& levels) {
  return levels ? levels->const_data_ptr<int64_t>() : nullptr;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return torch::stable::contiguous(*tensor);
}

}  // namespace instseg
