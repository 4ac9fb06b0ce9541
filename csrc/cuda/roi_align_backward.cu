// The gradient of RoIAlign, all levels in one launch, without atomics on it: a block owns a tile of
// pixels, adds what RoIs give to it in their order, and writes it once.
#include "roi_align.cuh"

namespace instseg {
namespace {

constexpr int TILE = 8;  // pixels along an axis; a warp owns a row of them
constexpr int THREADS = TILE * WARP;
constexpr int BATCH = TILE;  // RoIs whose weights are in shared memory at once, one made by a warp
constexpr int BINS = 32;     // bins along an axis at once: a bit each
constexpr int LIST = 2 * THREADS;

// Tiles of all levels are numbered through; those of level l begin at `first[l]`.
struct Tiles {
  int64_t first[MAX_LEVELS];
};

// What the bins of an axis weigh in the pixels of a tile.
template <typename R>
struct alignas(16) Weights {
  R pixels[TILE];
};

// Weights of one bin in the pixels from `low` on; returns a bit for each that is not 0.
template <typename R>
__device__ inline unsigned fill_weights(const Axis<R>& axis, int bin, int low, Weights<R>& result) {
  const R begin = axis.begin(bin), skipped = axis.skipped(begin), share = 1 / axis.divisor();
  R sums[TILE] = {};
  int first, last;
  axis.narrow(begin, low, low + TILE, first, last);
  for (int s = first; s < last; ++s) {
    int pixel;
    R upper;
    if (!axis.sample(begin, R(s) + skipped, pixel, upper)) continue;
    const int offset = pixel - low;
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      sums[q] += (q == offset ? 1 - upper : q == offset + 1 ? upper : R(0)) * share;
    }
  }
  unsigned touched = 0;
#pragma unroll
  for (int q = 0; q < TILE; ++q) {
    result.pixels[q] = sums[q];
    touched |= unsigned(sums[q] != 0) << q;
  }
  return touched;
}

// A block's tile: level, image, and its first pixel.
struct Place {
  int level, y, x;
  int64_t image;

  template <typename T, typename R>
  __device__ Place(const Pyramid<T, R>& pyramid, const Tiles& tiles, int64_t number) {
    level = 0;
    while (level + 1 < pyramid.count && number >= tiles.first[level + 1]) ++level;
    const int across = ceil_div(pyramid.levels[level].width, TILE);
    const int down = ceil_div(pyramid.levels[level].height, TILE);
    number -= tiles.first[level];
    x = int(number % across) * TILE;
    y = int(number / across % down) * TILE;
    image = number / across / down;
  }
};

// So few registers that three blocks (of float64: two) share a multiprocessor.
template <typename T>
constexpr int RESIDENT = std::is_same_v<T, double> ? 2 : 3;

// `grad` is channels-last whatever the layout of the result.
template <typename T, int V>
__global__ void __launch_bounds__(THREADS, RESIDENT<T>)
    spread(const __grid_constant__ Pyramid<T, Real<T>> pyramid,
           const __grid_constant__ Tiles tiles, const Real<T>* rois, const int64_t* levels,
           int64_t count, Pooling pooling, const T* grad, bool channels_last) {
  using R = Real<T>;
  __shared__ Weights<R> weights[2][BATCH][BINS];
  __shared__ unsigned row_bins[BATCH][TILE], column_bins[BATCH];
  __shared__ int hits[TILE], list[LIST];
  const int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
  const Place place(pyramid, tiles, blockIdx.x);
  const auto level = pyramid.levels[place.level];
  const int64_t channels = pyramid.channels;
  const int64_t channel = (int64_t(blockIdx.y) * WARP + lane) * V;

  R sums[TILE][V] = {};
  int listed = 0;
  for (int64_t k0 = 0; k0 < count; k0 += THREADS) {
    const int64_t k = k0 + thread;
    bool hit = false;
    if (k < count) {
      const RoI<R> roi(rois, levels, k, pyramid.count, pyramid.batch);
      if (roi.level == place.level && roi.image == place.image) {
        const Axis<R> y(roi.y1, roi.y2, level.scale, pooling.height, level.height, pooling);
        const Axis<R> x(roi.x1, roi.x2, level.scale, pooling.width, level.width, pooling);
        hit = y.touches(place.y, place.y + TILE, pooling.height) &&
              x.touches(place.x, place.x + TILE, pooling.width);
      }
    }
    // The list keeps the order of the RoIs.
    const unsigned votes = __ballot_sync(ALL_LANES, hit);
    if (lane == 0) hits[warp] = __popc(votes);
    __syncthreads();
    int position = listed + __popc(votes & ((1u << lane) - 1));
    for (int w = 0; w < TILE; ++w) {
      if (w < warp) position += hits[w];
      listed += hits[w];
    }
    if (hit) list[position] = int(k);
    __syncthreads();
    if (listed <= LIST - THREADS && k0 + THREADS < count) continue;

    for (int b0 = 0; b0 < listed; b0 += BATCH) {
      for (int i0 = 0; i0 < pooling.height; i0 += BINS) {
        for (int j0 = 0; j0 < pooling.width; j0 += BINS) {
          if (b0 + warp < listed) {
            if (lane < TILE) row_bins[warp][lane] = 0;
            if (lane == TILE) column_bins[warp] = 0;
            __syncwarp();
            const RoI<R> roi(rois, levels, list[b0 + warp], pyramid.count, pyramid.batch);
            const int rows = min(BINS, pooling.height - i0);
            const int columns = min(BINS, pooling.width - j0);
            for (int bin = lane; bin < rows + columns; bin += WARP) {
              if (bin < rows) {
                const Axis<R> y(roi.y1, roi.y2, level.scale, pooling.height, level.height, pooling);
                const unsigned touched =
                    fill_weights(y, i0 + bin, place.y, weights[0][warp][bin]);
                for (int p = 0; p < TILE; ++p) {
                  if (touched >> p & 1) atomicOr(&row_bins[warp][p], 1u << bin);
                }
              } else {
                const int j = bin - rows;
                const Axis<R> x(roi.x1, roi.x2, level.scale, pooling.width, level.width, pooling);
                if (fill_weights(x, j0 + j, place.x, weights[1][warp][j])) {
                  atomicOr(&column_bins[warp], 1u << j);
                }
              }
            }
          }
          __syncthreads();
          for (int b = 0; b < min(BATCH, listed - b0); ++b) {
            const unsigned rows = row_bins[b][warp];
            if (rows == 0 || channel >= channels) continue;
            const int64_t bins = int64_t(list[b0 + b]) * pooling.height * pooling.width;
            for (unsigned m = column_bins[b]; m != 0; m &= m - 1) {
              const int j = __ffs(m) - 1;
              R column[V] = {};
              for (unsigned n = rows; n != 0; n &= n - 1) {
                const int i = __ffs(n) - 1;
                const R weight = weights[0][b][i].pixels[warp];
                const int64_t bin = bins + int64_t(i0 + i) * pooling.width + j0 + j;
                const auto values = load<T, V>(grad + bin * channels + channel);
#pragma unroll
                for (int v = 0; v < V; ++v) column[v] += weight * R(values.values[v]);
              }
              const Weights<R> across = weights[1][b][j];
#pragma unroll
              for (int q = 0; q < TILE; ++q) {
#pragma unroll
                for (int v = 0; v < V; ++v) sums[q][v] += across.pixels[q] * column[v];
              }
            }
          }
          __syncthreads();
        }
      }
    }
    listed = 0;
  }

  if (channels_last) {
    const int y = place.y + warp;
    if (y >= level.height || channel >= channels) return;
    const int64_t row = (place.image * level.height + y) * level.width;
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      if (place.x + q >= level.width) break;
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.values[v] = T(sums[q][v]);
      store(level.data + (row + place.x + q) * channels + channel, pack);
    }
    return;
  }
  // NCHW: the tile turns round in shared memory, a channel of each lane at a time, so that lanes
  // write along rows of pixels. The weights are done with.
  constexpr int PITCH = TILE * TILE + 1;
  static_assert(WARP * PITCH * sizeof(R) <= sizeof(weights));
  R* stage = &weights[0][0][0].pixels[0];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    __syncthreads();
#pragma unroll
    for (int q = 0; q < TILE; ++q) stage[lane * PITCH + warp * TILE + q] = sums[q][v];
    __syncthreads();
    for (int e = thread; e < WARP * TILE * TILE; e += THREADS) {
      const int y = place.y + e / TILE % TILE, x = place.x + e % TILE, owner = e / (TILE * TILE);
      const int64_t c = (int64_t(blockIdx.y) * WARP + owner) * V + v;
      if (y >= level.height || x >= level.width || c >= channels) continue;
      level.data[((place.image * channels + c) * level.height + y) * level.width + x] =
          T(stage[owner * PITCH + e % (TILE * TILE)]);
    }
  }
}

std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois,
                                       const std::optional<Tensor>& levels,
                                       const std::vector<double>& scales, int64_t sampling_ratio,
                                       bool aligned, int64_t batch,
                                       const std::vector<int64_t>& sizes, bool channels_last) {
  const OnDevice device(grad);
  const int64_t count = rois.size(0), channels = grad.size(1);
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "too many boxes: ", count);
  std::vector<Tensor> results;
  for (size_t l = 0; l < scales.size(); ++l) {
    results.push_back(empty({batch, channels, sizes[2 * l], sizes[2 * l + 1]}, grad.scalar_type(),
                            grad, format_of(channels_last)));
  }
  if (batch == 0 || channels == 0) return results;
  const Tensor spreading = torch::stable::contiguous(grad, MemoryFormat::ChannelsLast);
  const Tensor rows = torch::stable::contiguous(rois);
  const std::optional<Tensor> indices = contiguous(levels);
  const Pooling pooling{int(grad.size(2)), int(grad.size(3)), int(sampling_ratio), aligned};

  dispatch(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    constexpr int V = sizeof(T) == 8 ? 2 : 4;
    auto pyramid = pyramid_of<T, R>(sizes, scales, batch, channels);
    const T* values = spreading.const_data_ptr<T>();
    bool vector = packs(values, channels, sizeof(T), sizeof(T) * V);
    Tiles tiles{};
    int64_t blocks = 0;
    for (int l = 0; l < pyramid.count; ++l) {
      auto& level = pyramid.levels[l];
      level.data = results[l].mutable_data_ptr<T>();
      vector = vector && packs(level.data, channels, sizeof(T), sizeof(T) * V);
      tiles.first[l] = blocks;
      blocks += batch * ceil_div(level.height, TILE) * ceil_div(level.width, TILE);
    }
    const auto run = [&](auto kernel, int wide) {
      device.launch(kernel, blocks, ceil_div(channels, int64_t(WARP * wide)), THREADS, pyramid,
                    tiles, rows.const_data_ptr<R>(), data_or_null(indices), count, pooling, values,
                    channels_last);
    };
    vector ? run(spread<T, V>, V) : run(spread<T, 1>, 1);
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instseg, CUDA, m) {
  m.impl("ext_roi_align_backward", TORCH_BOX(&roi_align_backward));
}

}  // namespace instseg
