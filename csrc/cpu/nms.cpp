// Greedy non-maximum suppression with a grid over the kept boxes.
//
// If IoU(a, b) > t, the intersection is longer than t times a's side on both axes, so that it holds
// one of the points that cut the side of a into pieces of at most t times its length. A kept box
// that drops a therefore covers one of these points: it is enough to look into their cells.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "kernels.h"

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Box {
  float x1, y1, x2, y2, area;
};

// Boxes as five rows of values, which grow together; what is free holds empty boxes, which overlap
// nothing, so that vectors may read past the last one.
class BoxRows {
 public:
  void push(const Box& box) {
    if (count_ == capacity_) grow();
    const float values[5] = {box.x1, box.y1, box.x2, box.y2, box.area};
    for (int64_t r = 0; r < 5; ++r) rows_[size_t(r * capacity_ + count_)] = values[r];
    ++count_;
  }

  bool overlaps_any(const Box& box, float threshold) const {
    return count_ > 0 && scalar_kernels().overlaps_any(rows_.data(), capacity_, count_, &box.x1,
                                                       threshold);
  }

 private:
  void grow() {
    const int64_t wider = std::max<int64_t>(16, capacity_ * 2);
    std::vector<float> rows(size_t(5 * wider), 0.0f);
    for (int64_t r = 0; r < 5; ++r) {
      std::copy_n(rows_.begin() + r * capacity_, count_, rows.begin() + r * wider);
    }
    rows_ = std::move(rows);
    capacity_ = wider;
  }

  std::vector<float> rows_;
  int64_t count_ = 0;
  int64_t capacity_ = 0;
};

// The kept boxes of one group, by the cells that they cover.
class Grid {
 public:
  Grid(const std::vector<Box>& boxes, float threshold) : threshold_(threshold) {
    // Cells about as large as the boxes: a box then lies in few of them.
    double x1 = INFINITY, y1 = INFINITY, x2 = -INFINITY, y2 = -INFINITY, side_x = 0, side_y = 0;
    for (const Box& b : boxes) {
      x1 = std::min(x1, double(b.x1));
      y1 = std::min(y1, double(b.y1));
      x2 = std::max(x2, double(b.x2));
      y2 = std::max(y2, double(b.y2));
      side_x += std::max(double(b.x2) - b.x1, 0.0) / double(boxes.size());
      side_y += std::max(double(b.y2) - b.y1, 0.0) / double(boxes.size());
    }
    left_ = x1;
    top_ = y1;
    columns_ = cells(x2 - x1, side_x, boxes.size());
    rows_ = cells(y2 - y1, side_y, boxes.size());
    per_x_ = x2 > x1 ? double(columns_) / (x2 - x1) : 0;
    per_y_ = y2 > y1 ? double(rows_) / (y2 - y1) : 0;
    kept_.resize(size_t(columns_ * rows_));
    // At least every half: the pieces must be shorter than the intersection, by more than rounding.
    pieces_ = threshold > 0.05f ? int64_t(std::ceil(1.001 / threshold)) : 0;
  }

  bool drops(const Box& box) const {
    const Range x = column(box.x1, box.x2), y = row(box.y1, box.y2);
    const int64_t all = (x.last - x.first + 1) * (y.last - y.first + 1);
    if (pieces_ == 0 || all <= (pieces_ - 1) * (pieces_ - 1)) {
      for (int64_t j = y.first; j <= y.last; ++j) {
        for (int64_t i = x.first; i <= x.last; ++i) {
          if (cell(i, j).overlaps_any(box, threshold_)) return true;
        }
      }
      return false;
    }
    int64_t last_j = -1;
    for (int64_t b = 1; b < pieces_; ++b) {
      const int64_t j = at_row(point(box.y1, box.y2, b));
      if (j == last_j) continue;
      last_j = j;
      int64_t last_i = -1;
      for (int64_t a = 1; a < pieces_; ++a) {
        const int64_t i = at_column(point(box.x1, box.x2, a));
        if (i == last_i) continue;
        last_i = i;
        if (cell(i, j).overlaps_any(box, threshold_)) return true;
      }
    }
    return false;
  }

  void keep(const Box& box) {
    const Range x = column(box.x1, box.x2), y = row(box.y1, box.y2);
    for (int64_t j = y.first; j <= y.last; ++j) {
      for (int64_t i = x.first; i <= x.last; ++i) kept_[size_t(j * columns_ + i)].push(box);
    }
  }

 private:
  struct Range {
    int64_t first, last;
  };

  static int64_t cells(double extent, double side, size_t boxes) {
    // No more cells than boxes: an axis has at most the square root of their number.
    const double most = std::min(std::sqrt(double(boxes)) + 1, 512.0);
    const double wanted = side > 0 ? extent / side : most;
    return int64_t(std::clamp(wanted, 1.0, most));
  }

  double point(float low, float high, int64_t piece) const {
    return low + (double(high) - low) * double(piece) / double(pieces_);
  }
  int64_t at_column(double x) const {
    return std::clamp(int64_t((x - left_) * per_x_), int64_t(0), columns_ - 1);
  }
  int64_t at_row(double y) const {
    return std::clamp(int64_t((y - top_) * per_y_), int64_t(0), rows_ - 1);
  }
  Range column(float x1, float x2) const { return {at_column(x1), at_column(x2)}; }
  Range row(float y1, float y2) const { return {at_row(y1), at_row(y2)}; }
  const BoxRows& cell(int64_t i, int64_t j) const { return kept_[size_t(j * columns_ + i)]; }

  float threshold_;
  double left_, top_, per_x_, per_y_;
  int64_t columns_, rows_, pieces_;
  std::vector<BoxRows> kept_;
};

// Indices by falling score, the first of equal ones first: a radix sort of the scores' bits.
std::vector<int64_t> falling(const float* scores, int64_t count) {
  struct Item {
    uint32_t key;
    uint32_t index;
  };
  std::vector<Item> items(static_cast<size_t>(count)), sorted(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float score = scores[i] + 0.0f;  // -0 and 0 are equal
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    // Rising with the score, then turned round.
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    items[size_t(i)] = {~bits, uint32_t(i)};
  }
  for (int shift = 0; shift < 32; shift += 11) {
    uint32_t starts[2049] = {};
    for (const Item& item : items) ++starts[((item.key >> shift) & 2047) + 1];
    for (int b = 1; b < 2048; ++b) starts[b] += starts[b - 1];
    for (const Item& item : items) sorted[starts[(item.key >> shift) & 2047]++] = item;
    items.swap(sorted);
  }
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (size_t i = 0; i < order.size(); ++i) order[i] = items[i].index;
  return order;
}

// One group, its boxes by falling score; keep[positions[n]] is written for each.
void suppress(const std::vector<Box>& boxes, const std::vector<int64_t>& positions,
              float threshold, bool* keep) {
  Grid grid(boxes, threshold);
  for (size_t n = 0; n < boxes.size(); ++n) {
    const bool kept = !grid.drops(boxes[n]);
    keep[positions[n]] = kept;
    if (kept) grid.keep(boxes[n]);
  }
}

std::tuple<Tensor, Tensor> nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups,
                               double iou_threshold) {
  const int64_t count = boxes.size(0);
  STD_TORCH_CHECK(count < (int64_t(1) << 32), "nms: too many boxes");
  Tensor order = torch::stable::empty({count}, ScalarType::Long);
  Tensor keep = torch::stable::empty({count}, ScalarType::Bool);
  const std::vector<int64_t> by_score =
      falling(static_cast<const float*>(scores.const_data_ptr()), count);
  std::copy(by_score.begin(), by_score.end(), static_cast<int64_t*>(order.mutable_data_ptr()));

  const float* rows = static_cast<const float*>(boxes.const_data_ptr());
  const int64_t* group = groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr;
  std::unordered_map<int64_t, size_t> number;
  std::vector<std::vector<Box>> members;
  std::vector<std::vector<int64_t>> positions;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t i = by_score[size_t(n)];
    const size_t g = number.emplace(group ? group[i] : 0, members.size()).first->second;
    if (g == members.size()) {
      members.emplace_back();
      positions.emplace_back();
    }
    const float* b = rows + i * 4;
    members[g].push_back({b[0], b[1], b[2], b[3], (b[2] - b[0]) * (b[3] - b[1])});
    positions[g].push_back(n);
  }
  bool* kept = static_cast<bool*>(keep.mutable_data_ptr());
  torch::stable::parallel_for(0, int64_t(members.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      suppress(members[size_t(g)], positions[size_t(g)], float(iou_threshold), kept);
    }
  });
  return {order, keep};
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) { m.impl("ext_nms", TORCH_BOX(&instseg::nms)); }
