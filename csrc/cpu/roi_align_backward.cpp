// RoIAlign backward: every pixel's gradient is a weighted sum of the gradients of bins.
//
// A task owns some rows of one image on one level and walks over the RoIs that reach them, always in
// the same order: no two tasks write one pixel, and sums do not depend on the number of threads.
#include <memory>

#include "parallel.h"
#include "roi_align.h"

namespace instseg {
namespace {

struct Stripe {
  int64_t level;
  int64_t image;
  int64_t top;
  int64_t bottom;
};

// Sums of a stripe stay in the second-level cache, or near it.
constexpr int64_t kStripeBytes = 2 << 20;
constexpr int64_t kFewestRows = 4;

std::vector<Stripe> make_stripes(const std::vector<Grid>& maps, int64_t batch, int64_t row_bytes) {
  std::vector<Stripe> stripes;
  for (size_t level = 0; level < maps.size(); ++level) {
    const int64_t bytes = std::max<int64_t>(row_bytes * maps[level].width, 1);
    const int64_t rows = std::max(kFewestRows, kStripeBytes / bytes);
    for (int64_t image = 0; image < batch; ++image) {
      for (int64_t top = 0; top < maps[level].height; top += rows) {
        stripes.push_back(
            {int64_t(level), image, top, std::min(top + rows, maps[level].height)});
      }
    }
  }
  return stripes;
}

// The rows [top, bottom) that a RoI touches, empty if none.
struct Reach {
  int64_t k;
  int64_t top;
  int64_t bottom;
};

// Of each level and image, in the order of the RoIs.
template <typename A>
std::vector<std::vector<Reach>> reaches(const RoIs<A>& rois) {
  std::vector<std::vector<Reach>> result(rois.maps.size() * size_t(rois.batch));
  AxisTaps<A> y;
  for (int64_t k = 0; k < rois.count; ++k) {
    if (!rois.valid(k)) continue;
    y.build(rois.y(k), rois.bins.height, rois.maps[rois.level(k)].height);
    if (y.taps.empty()) continue;
    const auto [low, high] =
        std::minmax_element(y.taps.begin(), y.taps.end(), [](const Tap<A>& a, const Tap<A>& b) {
          return a.pixel < b.pixel;
        });
    result[size_t(rois.level(k) * rois.batch + rois.image(k))].push_back(
        {k, low->pixel, high->pixel + 1});
  }
  return result;
}

// Adds the gradients of RoIs to the rows of a stripe, all channels of a pixel at once.
template <typename T>
class Spreader {
  using A = accumulate_t<T>;

 public:
  Spreader(const RoIs<A>& rois, const T* grad, int64_t channels)
      : rois_(rois), kernels_(row_kernels<T>()), grad_(grad), channels_(channels) {}

  // rows: [stripe height * map width, channels]
  void add(const Reach& reach, const Stripe& stripe, A* rows) {
    const int64_t k = reach.k;
    const Grid size = rois_.maps[size_t(stripe.level)];
    axis_.build(rois_.y(k), rois_.bins.height, size.height);
    y_.build(axis_);
    axis_.build(rois_.x(k), rois_.bins.width, size.width);
    x_.build(axis_);
    const T* grad = grad_ + k * rois_.bins.height * rois_.bins.width * channels_;
    const int64_t top = std::max(reach.top, stripe.top);
    const int64_t bottom = std::min(reach.bottom, stripe.bottom);
    for (int64_t y = top; y < bottom; ++y) {
      A* row = rows + ((y - stripe.top) * size.width + x_.first) * channels_;
      for (int64_t x = 0; x < x_.count; ++x, row += channels_) {
        collect(y - y_.first, x);
        if (offsets_.empty()) continue;
        kernels_.add_weighted_sum(grad, offsets_.data(), weights_.data(),
                                  int64_t(offsets_.size()), channels_, row);
      }
    }
  }

 private:
  void collect(int64_t y, int64_t x) {
    offsets_.clear();
    weights_.clear();
    for (int32_t i = y_.starts[y]; i < y_.starts[y + 1]; ++i) {
      for (int32_t j = x_.starts[x]; j < x_.starts[x + 1]; ++j) {
        offsets_.push_back((y_.taps[i].pixel * rois_.bins.width + x_.taps[j].pixel) * channels_);
        weights_.push_back(y_.taps[i].weight * x_.taps[j].weight);
      }
    }
  }

  const RoIs<A>& rois_;
  const RowKernels<T>& kernels_;
  const T* grad_;
  int64_t channels_;
  AxisTaps<A> axis_;
  PixelTaps<A> y_, x_;
  std::vector<int64_t> offsets_;
  std::vector<A> weights_;
};

// [K, C, bins] to [K, bins, C].
template <typename T>
Tensor bins_before_channels(const Tensor& grad) {
  const int64_t count = grad.size(0), channels = grad.size(1);
  const int64_t bins = grad.size(2) * grad.size(3);
  Tensor out = empty_like_format(grad, {count, bins, channels, 1}, false);
  parallel_pieces(count, 8, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        row_kernels<T>().transpose(const_data<T>(grad) + k * channels * bins, channels, bins, bins,
                                   data<T>(out) + k * bins * channels, channels);
      }
    };
  });
  return out;
}

// Where the sums of a stripe are made, and how they get to their place.
template <typename T>
class Sums {
  using A = accumulate_t<T>;

 public:
  Sums(T* out, int64_t area, int64_t channels, bool channels_last)
      : out_(out), area_(area), channels_(channels), channels_last_(channels_last) {}

  // Zeros for `pixels` pixels that begin at `first` of an image.
  A* begin(int64_t image, int64_t first, int64_t pixels) {
    const size_t count = size_t(pixels * channels_);
    if constexpr (std::is_same_v<T, A>) {
      if (channels_last_) {
        A* place = out_ + (image * area_ + first) * channels_;
        std::fill_n(place, count, A(0));
        return place;
      }
    }
    sums_.assign(count, A(0));
    return sums_.data();
  }

  void end(int64_t image, int64_t first, int64_t pixels) {
    const RowKernels<T>& kernels = row_kernels<T>();
    const int64_t count = pixels * channels_;
    if (channels_last_) {
      if constexpr (!std::is_same_v<T, A>) {
        kernels.narrow(sums_.data(), count, out_ + (image * area_ + first) * channels_);
      }
      return;
    }
    T* place = out_ + image * channels_ * area_ + first;
    const T* rounded;
    if constexpr (std::is_same_v<T, A>) {
      rounded = sums_.data();
    } else {
      rounded_.resize(size_t(count));
      kernels.narrow(sums_.data(), count, rounded_.data());
      rounded = rounded_.data();
    }
    kernels.transpose(rounded, pixels, channels_, channels_, place, area_);
  }

 private:
  T* out_;
  int64_t area_;
  int64_t channels_;
  bool channels_last_;
  std::vector<A> sums_;
  std::vector<T> rounded_;
};

template <typename T>
void spread(const RoIs<accumulate_t<T>>& rois, const T* grad, int64_t channels,
            const std::vector<T*>& outs, bool channels_last) {
  using A = accumulate_t<T>;
  const std::vector<std::vector<Reach>> reached = reaches(rois);
  const std::vector<Stripe> stripes =
      make_stripes(rois.maps, rois.batch, channels * int64_t(sizeof(A)));
  parallel_pieces(int64_t(stripes.size()), 1, [&] {
    return [&, spreader = Spreader<T>(rois, grad, channels)](int64_t begin, int64_t end) mutable {
      for (int64_t n = begin; n < end; ++n) {
        const Stripe& stripe = stripes[size_t(n)];
        const Grid map = rois.maps[size_t(stripe.level)];
        Sums<T> sums(outs[size_t(stripe.level)], map.height * map.width, channels, channels_last);
        const int64_t first = stripe.top * map.width;
        const int64_t pixels = (stripe.bottom - stripe.top) * map.width;
        A* rows = sums.begin(stripe.image, first, pixels);
        for (const Reach& reach : reached[size_t(stripe.level * rois.batch + stripe.image)]) {
          if (reach.top < stripe.bottom && reach.bottom > stripe.top) {
            spreader.add(reach, stripe, rows);
          }
        }
        sums.end(stripe.image, first, pixels);
      }
    };
  });
}

std::vector<Tensor> backward(Tensor grad, Tensor rows, std::optional<Tensor> levels,
                             std::vector<double> scales, int64_t sampling_ratio, bool aligned,
                             int64_t batch, std::vector<int64_t> sizes, bool channels_last) {
  const int64_t channels = grad.size(1);
  std::vector<Grid> maps;
  std::vector<Tensor> outs;
  for (size_t i = 0; i + 1 < sizes.size(); i += 2) {
    maps.push_back({sizes[i], sizes[i + 1]});
    outs.push_back(
        empty_like_format(grad, {batch, channels, sizes[i], sizes[i + 1]}, channels_last));
  }
  with_dtype(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto rois =
        make_rois<accumulate_t<T>>(rows, levels, batch, maps, scales, {grad.size(2), grad.size(3)},
                                   sampling_ratio, aligned);
    // Contiguous: the channels of a bin are apart.
    const bool apart = grad.numel() > 0 && grad.is_contiguous() &&
                       (channels > 1 && grad.size(2) * grad.size(3) > 1);
    const Tensor by_bin = apart ? bins_before_channels<T>(grad) : grad;
    std::vector<T*> pointers;
    for (const Tensor& out : outs) pointers.push_back(data<T>(out));
    spread<T>(rois, const_data<T>(by_bin), channels, pointers, channels_last);
  });
  return outs;
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_roi_align_backward", TORCH_BOX(&instseg::backward));
}
