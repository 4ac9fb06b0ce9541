// What the forward and the backward of RoIAlign share: where each RoI lies.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels.h"
#include "sampling.h"

namespace instseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Grid {
  int64_t height;
  int64_t width;
};

template <typename A>
struct RoIs {
  const A* rows;  // [count, 5]
  const int64_t* levels;  // [count] or null
  int64_t count;
  int64_t batch;
  std::vector<Grid> maps;  // of each level
  std::vector<A> scales;
  Grid bins;
  int64_t sampling_ratio;
  bool aligned;

  int64_t level(int64_t k) const { return levels ? levels[k] : 0; }
  int64_t image(int64_t k) const { return int64_t(rows[k * 5]); }

  // RoIs that lie nowhere pool zeros and get no gradient.
  bool valid(int64_t k) const {
    const A* r = rows + k * 5;
    for (int i = 0; i < 5; ++i) {
      if (!std::isfinite(r[i])) return false;
    }
    return r[0] >= 0 && r[0] < A(batch) && level(k) >= 0 && level(k) < int64_t(maps.size());
  }

  Axis<A> y(int64_t k) const {
    const A* r = rows + k * 5;
    return Axis<A>(r[2], r[4], scales[level(k)], aligned, bins.height, sampling_ratio);
  }
  Axis<A> x(int64_t k) const {
    const A* r = rows + k * 5;
    return Axis<A>(r[1], r[3], scales[level(k)], aligned, bins.width, sampling_ratio);
  }
};

// The numbers of the valid RoIs, neighbours on the maps side by side: they share the caches.
template <typename A>
std::vector<int64_t> in_order_of_place(const RoIs<A>& rois);

// The type of a tensor as a template argument: calls f(T{}).
template <typename F>
auto with_dtype(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      STD_TORCH_CHECK(false, "instseg: unsupported dtype");
  }
}

Tensor empty_like_format(const Tensor& like, std::vector<int64_t> shape, bool channels_last);

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename A>
RoIs<A> make_rois(const Tensor& rows, const std::optional<Tensor>& levels, int64_t batch,
                  std::vector<Grid> maps, const std::vector<double>& scales, Grid bins,
                  int64_t sampling_ratio, bool aligned) {
  return {const_data<A>(rows),
          levels ? const_data<int64_t>(*levels) : nullptr,
          rows.size(0),
          batch,
          std::move(maps),
          std::vector<A>(scales.begin(), scales.end()),
          bins,
          sampling_ratio,
          aligned};
}

template <typename A>
std::vector<int64_t> in_order_of_place(const RoIs<A>& rois) {
  struct Place {
    int64_t level, image;
    A y;
    int64_t k;
    bool operator<(const Place& o) const {
      if (level != o.level) return level < o.level;
      if (image != o.image) return image < o.image;
      if (y != o.y) return y < o.y;
      return k < o.k;
    }
  };
  std::vector<Place> places;
  for (int64_t k = 0; k < rois.count; ++k) {
    if (rois.valid(k)) places.push_back({rois.level(k), rois.image(k), rois.rows[k * 5 + 2], k});
  }
  std::sort(places.begin(), places.end());
  std::vector<int64_t> order;
  for (const Place& place : places) order.push_back(place.k);
  return order;
}

}  // namespace instseg
