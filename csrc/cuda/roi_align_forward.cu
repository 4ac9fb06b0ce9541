// RoIAlign of all levels in one launch.
//
// The samples of a bin are a grid, so that weights are made for each axis alone, once per block, in
// shared memory, and samples that share a pixel are merged into one "tap". Where a bin has more
// taps than the tables hold, its samples are taken in several passes.
#include "roi_align.cuh"

namespace instseg {
namespace {

constexpr int TAPS = 512;  // a table's length
constexpr int BINS = 32;   // bins along an axis that a block looks at
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

// How many samples of each bin fit a table.
__device__ inline int samples_at_once(int slots, int bins) { return min(slots, TAPS / (2 * bins)); }

// Channels-last maps: a block takes a row of up to 32 bins of a RoI and the channels that the lanes
// of a warp can hold; each warp takes a bin at a time, with its sums in registers.
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    pool_channels_last(const __grid_constant__ Pyramid<const T, Real<T>> pyramid,
                       const Real<T>* rois, const int64_t* levels, Pooling pooling, T* output) {
  using R = Real<T>;
  __shared__ Tap<R> y_taps[TAPS], x_taps[TAPS];
  __shared__ int y_count, x_counts[BINS];
  const int thread = threadIdx.x, warp = thread / WARP, warps = blockDim.x / WARP;
  const int tiles = ceil_div(pooling.width, BINS);
  const int first = int(blockIdx.x % tiles) * BINS, bins = min(BINS, pooling.width - first);
  const int row = int(blockIdx.x / tiles % pooling.height);
  const int64_t k = blockIdx.x / tiles / pooling.height;
  const int64_t channels = pyramid.channels;
  const int64_t channel = (int64_t(blockIdx.y) * WARP + thread % WARP) * V;

  const RoI<R> roi(rois, levels, k, pyramid.count, pyramid.batch);
  const auto level = pyramid.levels[max(roi.level, 0)];
  const Axis<R> y(roi.y1, roi.y2, level.scale, pooling.height, level.height, pooling);
  const Axis<R> x(roi.x1, roi.x2, level.scale, pooling.width, level.width, pooling);
  const int y_slots = roi.level < 0 ? 0 : y.slots, x_slots = roi.level < 0 ? 0 : x.slots;
  const int y_step = samples_at_once(y_slots, 1), x_step = samples_at_once(x_slots, bins);
  const bool once = y_slots == y_step && x_slots == x_step;
  const T* map = level.data + roi.image * level.height * level.width * channels + channel;

  for (int j0 = 0; j0 < bins; j0 += warps) {
    const int j = j0 + warp;
    R sums[V] = {};
    for (int s = 0; s < y_slots; s += y_step) {
      for (int t = 0; t < x_slots; t += x_step) {
        if (!once || j0 == 0) {
          __syncthreads();
          if (thread < bins) {
            x_counts[thread] = fill_taps(x, first + thread, t, min(t + x_step, x_slots),
                                         x_taps + thread * 2 * x_step);
          } else if (thread == BINS) {
            y_count = fill_taps(y, row, s, min(s + y_step, y_slots), y_taps);
          }
          __syncthreads();
        }
        if (j >= bins || channel >= channels) continue;
        const Tap<R>* taps = x_taps + j * 2 * x_step;
        const int count = x_counts[j];
        for (int a = 0; a < y_count; ++a) {
          const T* pixels = map + int64_t(y_taps[a].pixel) * level.width * channels;
#pragma unroll 4
          for (int b = 0; b < count; ++b) {
            const R weight = y_taps[a].weight * taps[b].weight;
            const auto values = load<T, V>(pixels + taps[b].pixel * channels);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[v] += weight * R(values.values[v]);
          }
        }
      }
    }
    if (j >= bins || channel >= channels) continue;
    Pack<T, V> pooled;
#pragma unroll
    for (int v = 0; v < V; ++v) pooled.values[v] = T(sums[v]);
    const int64_t bin = (k * pooling.height + row) * pooling.width + first + j;
    store(output + bin * channels + channel, pooled);
  }
}

constexpr int GROUP = 16;     // channels of a block
constexpr int STAGE = 3584;   // sums of columns in shared memory
constexpr int OUTPUTS = 8;    // of a thread in one pass

// NCHW maps: a block takes up to 32 x 32 bins of a RoI and some channels. First each lane sums a
// pixel column over the rows of a bin, so that a warp reads along a row of the map; then each
// thread sums the columns of its bins, which lie in a row of the output.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    pool_nchw(const __grid_constant__ Pyramid<const T, Real<T>> pyramid, const Real<T>* rois,
              const int64_t* levels, Pooling pooling, T* output) {
  using R = Real<T>;
  __shared__ Tap<R> y_taps[TAPS], x_taps[TAPS];
  __shared__ int y_counts[BINS], x_counts[BINS];
  __shared__ R stage[STAGE];
  const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
  const int x_tiles = ceil_div(pooling.width, BINS), y_tiles = ceil_div(pooling.height, BINS);
  const int j0 = int(blockIdx.x % x_tiles) * BINS, columns = min(BINS, pooling.width - j0);
  const int i0 = int(blockIdx.x / x_tiles % y_tiles) * BINS;
  const int bin_rows = min(BINS, pooling.height - i0);
  const int64_t k = blockIdx.x / x_tiles / y_tiles;
  const int64_t c0 = int64_t(blockIdx.y) * GROUP;
  // Rows of bins of all channels of the block, numbered through.
  const int rows = bin_rows * int(min(int64_t(GROUP), pyramid.channels - c0));

  const RoI<R> roi(rois, levels, k, pyramid.count, pyramid.batch);
  const auto level = pyramid.levels[max(roi.level, 0)];
  const Axis<R> y(roi.y1, roi.y2, level.scale, pooling.height, level.height, pooling);
  const Axis<R> x(roi.x1, roi.x2, level.scale, pooling.width, level.width, pooling);
  const int y_slots = roi.level < 0 ? 0 : y.slots, x_slots = roi.level < 0 ? 0 : x.slots;
  const int y_step = samples_at_once(y_slots, bin_rows);
  const int x_step = samples_at_once(x_slots, columns);
  const bool once = y_slots == y_step && x_slots == x_step;
  const int64_t pixels = int64_t(level.height) * level.width;
  const T* map = level.data + (roi.image * pyramid.channels + c0) * pixels;

  const int span = 2 * x_step;          // taps of a bin
  const int width = columns * span;     // of a row of the stage, at most TAPS
  const int pass = min(STAGE / max(width, 1), OUTPUTS * THREADS / columns);
  for (int r0 = 0; r0 < rows; r0 += pass) {
    const int now = min(pass, rows - r0);
    R sums[OUTPUTS] = {};
    for (int s = 0; s < y_slots; s += y_step) {
      for (int t = 0; t < x_slots; t += x_step) {
        __syncthreads();
        if (!once || r0 == 0) {
          if (thread < columns) {
            x_counts[thread] = fill_taps(x, j0 + thread, t, min(t + x_step, x_slots),
                                         x_taps + thread * span);
            for (int a = x_counts[thread]; a < span; ++a) x_taps[thread * span + a].pixel = -1;
          } else if (thread >= BINS && thread - BINS < bin_rows) {
            const int i = thread - BINS;
            y_counts[i] = fill_taps(y, i0 + i, s, min(s + y_step, y_slots),
                                    y_taps + i * 2 * y_step);
          }
          __syncthreads();
        }
        for (int r = warp; r < now; r += WARPS) {
          const int i = (r0 + r) % bin_rows;
          const T* channel = map + (r0 + r) / bin_rows * pixels;
          const Tap<R>* taps = y_taps + i * 2 * y_step;
          for (int l = lane; l < width; l += WARP) {
            const int column = x_taps[l].pixel;
            if (column < 0) continue;
            R sum = 0;
#pragma unroll 4
            for (int a = 0; a < y_counts[i]; ++a) {
              sum += taps[a].weight * R(channel[int64_t(taps[a].pixel) * level.width + column]);
            }
            stage[r * width + l] = sum;
          }
        }
        __syncthreads();
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) {
          const int e = o * THREADS + thread;
          if (e >= now * columns) break;
          const int l = e % columns * span;
          for (int b = 0; b < x_counts[e % columns]; ++b) {
            sums[o] += x_taps[l + b].weight * stage[e / columns * width + l + b];
          }
        }
      }
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      const int e = o * THREADS + thread;
      if (e >= now * columns) break;
      const int r = r0 + e / columns;
      const int64_t c = k * pyramid.channels + c0 + r / bin_rows;
      output[(c * pooling.height + i0 + r % bin_rows) * pooling.width + j0 + e % columns] =
          T(sums[o]);
    }
  }
}

template <typename T, int V>
void launch_channels_last(const OnDevice& device, const Pyramid<const T, Real<T>>& pyramid,
                          const Real<T>* rois, const int64_t* levels, int64_t count,
                          const Pooling& pooling, T* output) {
  const int columns = std::min(pooling.width, BINS);
  // As many warps as share the bins of a row evenly, and one for the taps of the other axis.
  const int warps = std::max(2, ceil_div(columns, ceil_div(columns, WARPS)));
  device.launch(pool_channels_last<T, V>, count * pooling.height * ceil_div(pooling.width, BINS),
                ceil_div(pyramid.channels, int64_t(WARP * V)), warps * WARP, pyramid, rois, levels,
                pooling, output);
}

Tensor roi_align(std::vector<Tensor> features, const Tensor& rois,
                 const std::optional<Tensor>& levels, const std::vector<double>& scales,
                 int64_t height, int64_t width, int64_t sampling_ratio, bool aligned,
                 bool channels_last) {
  const OnDevice device(rois);
  const int64_t count = rois.size(0), batch = features[0].size(0), channels = features[0].size(1);
  const MemoryFormat format = format_of(channels_last);
  const Tensor output =
      empty({count, channels, height, width}, features[0].scalar_type(), rois, format);
  if (output.numel() == 0) return output;
  std::vector<int64_t> sizes;
  for (Tensor& feature : features) {
    feature = torch::stable::contiguous(feature, format);
    sizes.insert(sizes.end(), {feature.size(2), feature.size(3)});
  }
  const Tensor rows = torch::stable::contiguous(rois);
  const std::optional<Tensor> indices = contiguous(levels);
  const Pooling pooling{int(height), int(width), int(sampling_ratio), aligned};

  dispatch(output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    constexpr int V = 16 / sizeof(T);
    auto pyramid = pyramid_of<const T, R>(sizes, scales, batch, channels);
    bool vector = packs(output.const_data_ptr(), channels, sizeof(T), 16);
    for (int l = 0; l < pyramid.count; ++l) {
      pyramid.levels[l].data = features[l].const_data_ptr<T>();
      vector = vector && packs(pyramid.levels[l].data, channels, sizeof(T), 16);
    }
    T* out = output.mutable_data_ptr<T>();
    const R* boxes = rows.const_data_ptr<R>();
    const int64_t* index = data_or_null(indices);
    if (!channels_last) {
      const int64_t tiles = ceil_div(pooling.width, BINS) * ceil_div(pooling.height, BINS);
      device.launch(pool_nchw<T>, count * tiles, ceil_div(channels, int64_t(GROUP)), THREADS,
                    pyramid, boxes, index, pooling, out);
    } else if (vector) {
      launch_channels_last<T, V>(device, pyramid, boxes, index, count, pooling, out);
    } else {
      launch_channels_last<T, 1>(device, pyramid, boxes, index, count, pooling, out);
    }
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instseg, CUDA, m) { m.impl("ext_roi_align", TORCH_BOX(&roi_align)); }

}  // namespace instseg
