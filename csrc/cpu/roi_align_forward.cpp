// RoIAlign forward: every bin is a weighted sum of feature pixels, all channels of a pixel at once.
//
// Channels-last maps are read where they lie. Others are turned, some channels at a time, into a
// channels-last copy that stays in the cache while all RoIs are pooled from it.
#include <cstring>
#include <memory>

#include "parallel.h"
#include "roi_align.h"

namespace instseg {
namespace {

// Channels-last pixels of a map or of a window of it: row y, column x is at
// (y + row) * pitch + x - left.
template <typename T>
struct Pixels {
  const T* data;
  int64_t channels;
  int64_t row;
  int64_t pitch;
  int64_t left;
};

// Pixels [top, bottom) x [left, right) of a map.
struct Window {
  int64_t top;
  int64_t bottom;
  int64_t left;
  int64_t right;

  int64_t area() const { return std::max<int64_t>(bottom - top, 0) * (right - left); }
};

template <typename A>
std::pair<int64_t, int64_t> extent(const AxisTaps<A>& axis) {
  int64_t low = 0, high = 0;
  for (const Tap<A>& tap : axis.taps) {
    low = high == 0 ? tap.pixel : std::min<int64_t>(low, tap.pixel);
    high = std::max<int64_t>(high, tap.pixel + 1);
  }
  return {low, high};
}

// The sums of one RoI after the other, with the memory that they need.
template <typename T>
class Pooler {
  using A = accumulate_t<T>;

 public:
  explicit Pooler(const RoIs<A>& rois) : rois_(rois), kernels_(row_kernels<T>()) {}

  // Turns to RoI k and tells which pixels it touches.
  Window aim(int64_t k) {
    const Grid size = rois_.maps[size_t(rois_.level(k))];
    y_.build(rois_.y(k), rois_.bins.height, size.height);
    x_.build(rois_.x(k), rois_.bins.width, size.width);
    const auto [top, bottom] = extent(y_);
    const auto [left, right] = extent(x_);
    return {top, bottom, left, right};
  }

  // out[bin * channels + c]
  void pool(const Pixels<T>& map, T* out) {
    int32_t y_begin = 0;
    for (int64_t i = 0; i < rois_.bins.height; ++i) {
      int32_t x_begin = 0;
      for (int64_t j = 0; j < rois_.bins.width; ++j) {
        collect(y_begin, y_.ends[i], x_begin, x_.ends[j], map);
        kernels_.weighted_sum(map.data, offsets_.data(), weights_.data(),
                              int64_t(offsets_.size()), map.channels, out);
        out += map.channels;
        x_begin = x_.ends[j];
      }
      y_begin = y_.ends[i];
    }
  }

 private:
  void collect(int32_t y_begin, int32_t y_end, int32_t x_begin, int32_t x_end,
               const Pixels<T>& map) {
    const size_t count = size_t(y_end - y_begin) * size_t(x_end - x_begin);
    offsets_.resize(count);
    weights_.resize(count);
    size_t e = 0;
    for (int32_t y = y_begin; y < y_end; ++y) {
      const int64_t row = (map.row + y_.taps[y].pixel) * map.pitch - map.left;
      for (int32_t x = x_begin; x < x_end; ++x, ++e) {
        offsets_[e] = (row + x_.taps[x].pixel) * map.channels;
        weights_[e] = y_.taps[y].weight * x_.taps[x].weight;
      }
    }
  }

  const RoIs<A>& rois_;
  const RowKernels<T>& kernels_;
  AxisTaps<A> y_, x_;
  std::vector<int64_t> offsets_;
  std::vector<A> weights_;
};

template <typename T>
void pool_channels_last(const RoIs<accumulate_t<T>>& rois, const std::vector<int64_t>& order,
                        const std::vector<const T*>& maps, int64_t channels, T* out) {
  const int64_t bins = rois.bins.height * rois.bins.width;
  parallel_pieces(int64_t(order.size()), 4, [&] {
    return [&, pooler = Pooler<T>(rois)](int64_t begin, int64_t end) mutable {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t k = order[n];
        const Grid size = rois.maps[size_t(rois.level(k))];
        pooler.aim(k);
        pooler.pool({maps[size_t(rois.level(k))], channels, rois.image(k) * size.height, size.width, 0},
                    out + k * bins * channels);
      }
    };
  });
}

// Channels at a time so that their channels-last copy stays in a shared cache of this many bytes.
constexpr int64_t kCopyBytes = 10 << 20;
// Windows are this many columns wide, or a multiple: whole squares are quick to turn.
constexpr int64_t kColumns = 16;

// The RoIs `order[first..last)`, all of one level, whose maps are contiguous.
template <typename T>
class ContiguousLevel {
  using A = accumulate_t<T>;

 public:
  ContiguousLevel(const RoIs<A>& rois, const int64_t* first, const int64_t* last, const T* map,
                  int64_t channels)
      : rois_(rois), first_(first), count_(last - first), map_(map), channels_(channels) {
    size_ = rois.maps[size_t(rois.level(*first))];
    touched_.assign(size_t(rois.batch), Window{size_.height, 0, 0, size_.width});
    Pooler<T> pooler(rois);
    for (const int64_t* k = first; k != last; ++k) {
      const Window window = widened(pooler.aim(*k));
      windows_area_ += window.area();
      if (window.area() == 0) continue;
      Window& band = touched_[size_t(rois.image(*k))];
      band.top = std::min(band.top, window.top);
      band.bottom = std::max(band.bottom, window.bottom);
    }
  }

  void pool(T* out) const {
    int64_t band_area = 0;
    for (const Window& band : touched_) band_area += band.area();
    if (windows_area_ <= band_area) {
      pool_windows(out);
    } else {
      pool_bands(out);
    }
  }

 private:
  Window widened(Window window) const {
    const int64_t columns = (window.right - window.left + kColumns - 1) / kColumns * kColumns;
    window.right = std::min(window.left + columns, size_.width);
    window.left = std::max<int64_t>(window.right - columns, 0);
    return window;
  }

  // Each RoI from a copy of the pixels that it touches: for RoIs that overlap little.
  void pool_windows(T* out) const {
    const int64_t bins = rois_.bins.height * rois_.bins.width;
    const int64_t area = size_.height * size_.width;
    parallel_pieces(count_, 4, [&] {
      return [&, pooler = Pooler<T>(rois_), copy = std::vector<T>(),
              part = std::vector<T>(size_t(bins * channels_))](int64_t begin,
                                                               int64_t end) mutable {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t k = first_[n];
          const Window window = widened(pooler.aim(k));
          const int64_t pitch = window.right - window.left;
          copy.resize(std::max(copy.size(), size_t(window.area() * channels_)));
          const T* image = map_ + rois_.image(k) * channels_ * area + window.left;
          for (int64_t y = window.top; y < window.bottom; ++y) {
            row_kernels<T>().transpose(image + y * size_.width, channels_, pitch, area,
                                       copy.data() + (y - window.top) * pitch * channels_,
                                       channels_);
          }
          pooler.pool({copy.data(), channels_, -window.top, pitch, window.left}, part.data());
          row_kernels<T>().transpose(part.data(), bins, channels_, channels_,
                                     out + k * channels_ * bins, bins);
        }
      };
    });
  }

  // All RoIs from one copy of some channels, then of the next ones.
  void pool_bands(T* out) const {
    const int64_t pixels = rois_.batch * size_.height * size_.width;
    const int64_t fitting = kCopyBytes / (pixels * int64_t(sizeof(T)));
    const int64_t step = std::min(channels_, std::max<int64_t>(fitting / 16, 1) * 16);
    const std::unique_ptr<T[]> copy(new T[size_t(pixels * step)]);
    for (int64_t c = 0; c < channels_; c += step) {
      const int64_t some = std::min(step, channels_ - c);
      turn(c, some, copy.get());
      pool_channels(c, some, copy.get(), out);
    }
  }

  // `some` channels from c on, channels-last; rows that no RoI touches are left as they are.
  void turn(int64_t c, int64_t some, T* copy) const {
    const int64_t area = size_.height * size_.width;
    parallel_pieces(rois_.batch * size_.height, 8, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t image = row / size_.height, y = row % size_.height;
          const Window& band = touched_[size_t(image)];
          if (y < band.top || y >= band.bottom) continue;
          row_kernels<T>().transpose(map_ + (image * channels_ + c) * area + y * size_.width, some,
                                     size_.width, area, copy + row * size_.width * some, some);
        }
      };
    });
  }

  void pool_channels(int64_t c, int64_t some, const T* copy, T* out) const {
    const int64_t bins = rois_.bins.height * rois_.bins.width;
    parallel_pieces(count_, 4, [&] {
      return [&, pooler = Pooler<T>(rois_), part = std::vector<T>(size_t(bins * some))](
                 int64_t begin, int64_t end) mutable {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t k = first_[n];
          pooler.aim(k);
          pooler.pool({copy, some, rois_.image(k) * size_.height, size_.width, 0}, part.data());
          row_kernels<T>().transpose(part.data(), bins, some, some,
                                     out + (k * channels_ + c) * bins, bins);
        }
      };
    });
  }

  const RoIs<A>& rois_;
  const int64_t* first_;
  int64_t count_;
  const T* map_;
  int64_t channels_;
  Grid size_;
  std::vector<Window> touched_;  // of each image
  int64_t windows_area_ = 0;
};

template <typename T>
void pool_contiguous(const RoIs<accumulate_t<T>>& rois, const std::vector<int64_t>& order,
                     const std::vector<const T*>& maps, int64_t channels, T* out) {
  const int64_t* end = order.data() + order.size();
  for (const int64_t* first = order.data(); first != end;) {
    const int64_t level = rois.level(*first);
    const int64_t* last =
        std::find_if(first, end, [&](int64_t k) { return rois.level(k) != level; });
    ContiguousLevel<T>(rois, first, last, maps[size_t(level)], channels).pool(out);
    first = last;
  }
}

Tensor forward(std::vector<Tensor> features, Tensor rows, std::optional<Tensor> levels,
               std::vector<double> scales, int64_t height, int64_t width, int64_t sampling_ratio,
               bool aligned, bool channels_last) {
  const Tensor& first = features.at(0);
  const int64_t channels = first.size(1);
  std::vector<Grid> maps;
  for (const Tensor& f : features) maps.push_back({f.size(2), f.size(3)});
  Tensor out = empty_like_format(first, {rows.size(0), channels, height, width}, channels_last);
  if (out.numel() == 0) return out;
  with_dtype(first.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto rois = make_rois<accumulate_t<T>>(rows, levels, first.size(0), maps, scales,
                                                 {height, width}, sampling_ratio, aligned);
    const std::vector<int64_t> order = in_order_of_place(rois);
    if (int64_t(order.size()) < rois.count) {
      std::memset(data<T>(out), 0, size_t(out.numel()) * sizeof(T));
    }
    std::vector<const T*> pointers;
    for (const Tensor& f : features) pointers.push_back(const_data<T>(f));
    const auto run = channels_last ? pool_channels_last<T> : pool_contiguous<T>;
    run(rois, order, pointers, channels, data<T>(out));
  });
  return out;
}

}  // namespace

Tensor empty_like_format(const Tensor& like, std::vector<int64_t> shape, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), like.scalar_type(),
      std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_roi_align", TORCH_BOX(&instseg::forward));
}
