// Greedy suppression: a bit for each pair of boxes, then one block that walks over them. The CPU
// waits for nothing.
#include <array>

#include "common.cuh"
#include "geometry.cuh"

namespace instseg {
namespace {

constexpr int BLOCK = 64;  // boxes whose bits make a word
constexpr int SCAN_THREADS = 1024;
constexpr int SHARED = 8192;  // half words of the scan in shared memory: up to 262144 boxes

template <typename R>
struct Box {
  R x1, y1, x2, y2, area;
  int64_t group;

  template <typename T>
  __device__ static Box at(const T* boxes, const int64_t* groups, int64_t index) {
    const T* row = boxes + index * 4;
    const R x1 = R(row[0]), y1 = R(row[1]), x2 = R(row[2]), y2 = R(row[3]);
    return {x1, y1, x2, y2, times(x2 - x1, y2 - y1), groups == nullptr ? 0 : groups[index]};
  }

  // The roundings are those of PyTorch's elementwise operations.
  __device__ bool overlaps(const Box& other, R threshold) const {
    const R width = fmax(fmin(x2, other.x2) - fmax(x1, other.x1), R(0));
    const R height = fmax(fmin(y2, other.y2) - fmax(y1, other.y1), R(0));
    const R shared = times(width, height);
    if (!(shared > 0) || group != other.group) return false;
    return shared / (area + other.area - shared) > threshold;
  }
};

// Of box i, word w of its row of `words` has a bit for each box in 64 w .. 64 w + 63 that it drops;
// in its own word the bits are instead those of the boxes before it, which drop it. Words before
// its own are not written.
template <typename T>
__global__ void __launch_bounds__(BLOCK)
    compare(const T* boxes, const int64_t* groups, const int64_t* order, int64_t count,
            Real<T> threshold, int64_t words, uint64_t* bits) {
  using R = Real<T>;
  __shared__ Box<R> columns[BLOCK];
  const int64_t column = blockIdx.x, row = blockIdx.y;
  if (column < row) return;
  const int thread = threadIdx.x;
  const int64_t i = row * BLOCK + thread, j0 = column * BLOCK;
  if (j0 + thread < count) columns[thread] = Box<R>::at(boxes, groups, order[j0 + thread]);
  __syncthreads();
  if (i >= count) return;
  const auto box = Box<R>::at(boxes, groups, order[i]);
  const int end = column == row ? thread : int(min(int64_t(BLOCK), count - j0));
  uint64_t word = 0;
  for (int j = 0; j < end; ++j) word |= uint64_t(box.overlaps(columns[j], threshold)) << j;
  bits[i * words + column] = word;
}

// The words that say who drops a lane's two boxes among the 64 of block b.
struct Own {
  uint64_t words[2];

  __device__ Own(const uint64_t* bits, int64_t count, int64_t words_of_row, int64_t b, int lane) {
    for (int h = 0; h < 2; ++h) {
      const int64_t i = b * BLOCK + h * WARP + lane;
      words[h] = i < count ? bits[i * words_of_row + b] : 0;
    }
  }
};

// Which of the `alive` boxes of a block stay. Each round is right for one more box of any chain of
// suppressions; most chains are short.
__device__ inline uint64_t settle(uint64_t alive, const Own& own, int lane) {
  for (uint64_t kept = alive;;) {
    uint64_t next = 0;
    for (int h = 0; h < 2; ++h) {
      const int bit = h * WARP + lane;
      const bool stays = (alive >> bit & 1) != 0 && (own.words[h] & kept) == 0;
      next |= uint64_t(__ballot_sync(ALL_LANES, stays)) << (h * WARP);
    }
    if (next == kept) return kept;
    kept = next;
  }
}

__global__ void __launch_bounds__(SCAN_THREADS)
    scan(const uint64_t* bits, int64_t count, int64_t words, uint32_t* spare, bool* keep) {
  __shared__ uint32_t local[SHARED];
  __shared__ uint64_t kept_here;
  // A bit for each box that a kept one dropped.
  uint32_t* dropped = spare == nullptr ? local : spare;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int64_t w = threadIdx.x; w < 2 * words; w += SCAN_THREADS) dropped[w] = 0;
  Own own(bits, count, words, 0, lane);
  __syncthreads();
  for (int64_t b = 0; b < words; ++b) {
    if (warp == 0) {
      const int64_t first = b * BLOCK, left = count - first;
      const volatile uint32_t* gone = dropped + 2 * b;  // atomics pass by a cache of global memory
      uint64_t alive = ~(uint64_t(gone[1]) << WARP | gone[0]);
      if (left < BLOCK) alive &= (uint64_t(1) << left) - 1;
      const uint64_t kept = settle(alive, own, lane);
      for (int bit = lane; bit < min(int64_t(BLOCK), left); bit += WARP) {
        keep[first + bit] = (kept >> bit & 1) != 0;
      }
      if (lane == 0) kept_here = kept;
      if (b + 1 < words) own = Own(bits, count, words, b + 1, lane);  // read ahead
    }
    __syncthreads();
    for (int row = warp; row < BLOCK; row += SCAN_THREADS / WARP) {
      if ((kept_here >> row & 1) == 0) continue;
      const uint64_t* drops = bits + (b * BLOCK + row) * words;
      for (int64_t w = b + 1 + lane; w < words; w += WARP) {
        const uint64_t word = drops[w];
        if (uint32_t(word) != 0) atomicOr(dropped + 2 * w, uint32_t(word));
        if (word >> WARP != 0) atomicOr(dropped + 2 * w + 1, uint32_t(word >> WARP));
      }
    }
    __syncthreads();
  }
}

// Indices by falling score; equal scores stay in order.
Tensor falling(const Tensor& scores) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)),
                                    from(int64_t(-1)), from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor values = torch::stable::detail::to<Tensor>(stack[0]);  // owned, and not needed
  return torch::stable::detail::to<Tensor>(stack[1]);
}

std::tuple<Tensor, Tensor> nms(const Tensor& boxes, const Tensor& scores,
                               const std::optional<Tensor>& groups, double iou_threshold) {
  const OnDevice device(boxes);
  const int64_t count = boxes.size(0), words = ceil_div(count, int64_t(BLOCK));
  const Tensor order = falling(scores);
  const Tensor keep = empty({count}, ScalarType::Bool, boxes);
  if (count == 0) return {order, keep};
  const Tensor rows = torch::stable::contiguous(boxes);
  std::optional<Tensor> members;
  if (groups) members = torch::stable::contiguous(*groups);
  const int64_t* group = members ? members->const_data_ptr<int64_t>() : nullptr;
  const Tensor bits = empty({count, words}, ScalarType::Long, boxes);
  auto* words_of_bits = static_cast<uint64_t*>(bits.mutable_data_ptr());

  dispatch(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    device.launch(compare<T>, words, words, BLOCK, rows.const_data_ptr<T>(), group,
                  order.const_data_ptr<int64_t>(), count, Real<T>(iou_threshold), words,
                  words_of_bits);
  });
  std::optional<Tensor> spare;
  if (2 * words > SHARED) spare = empty({2 * words}, ScalarType::Int, boxes);
  device.launch(scan, 1, 1, SCAN_THREADS, words_of_bits, count, words,
                spare ? static_cast<uint32_t*>(spare->mutable_data_ptr()) : nullptr,
                keep.mutable_data_ptr<bool>());
  return {order, keep};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instseg, CUDA, m) { m.impl("ext_nms", TORCH_BOX(&nms)); }

}  // namespace instseg
