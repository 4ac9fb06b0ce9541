// RoI masks to COCO run lengths, column by column, with no array of pixels.
//
// The values are those of instseg/ops/_torch/paste.py to the last bit, where the arithmetic is
// described; this file is compiled without fused multiply-adds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "parallel.h"

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Where the pixels [first, first + low.size()) sample the bordered mask along one axis.
struct Axis {
  int64_t first = 0;
  std::vector<int32_t> low;   // the first of a pixel's two cells
  std::vector<float> weight;  // of the second one
};

// Pixels [begin, end) of an axis that share their two cells.
struct Segment {
  int32_t low;
  int64_t begin, end;
};

void resize(Axis& axis, double begin, double end, int64_t extent) {
  const double limit = double(extent);
  axis.first = int64_t(std::min(std::max(begin, 0.0), limit));
  const int64_t last = std::max(int64_t(std::min(std::max(end, 0.0), limit)), axis.first);
  axis.low.resize(size_t(last - axis.first));
  axis.weight.resize(axis.low.size());
}

void put(Axis& axis, size_t pixel, float position, int64_t cells) {
  position = position > 0 ? std::min(position, float(cells + 1)) : 0.0f;
  const float whole = std::floor(position);
  axis.low[pixel] = int32_t(whole);
  axis.weight[pixel] = position - whole;
}

// Each pixel that the box touches samples the mask at its centre; cells tile the box.
void pixel_centres(float low, float high, int64_t cells, int64_t extent, Axis& axis) {
  const float length = high - low;
  if (!(length > 0)) return resize(axis, 0, 0, extent);
  resize(axis, std::floor(low), std::ceil(high), extent);
  const float scale = float(cells) / length;
  for (size_t i = 0; i < axis.low.size(); ++i) {
    put(axis, i, (float(axis.first + int64_t(i)) + 0.5f - low) * scale + 0.5f, cells);
  }
}

// torchvision's: the mask with its border is resized to a box of whole pixels.
void whole_pixels(float low, float high, int64_t cells, int64_t extent, Axis& axis) {
  constexpr float kFar = float(int64_t(1) << 40);
  low = std::max(-kFar, std::min(low, kFar));
  high = std::max(-kFar, std::min(high, kFar));
  const float half = (high - low) * 0.5f * float(double(cells + 2) / double(cells));
  const float center = (high + low) * 0.5f;
  const int64_t left = int64_t(center - half), right = int64_t(center + half);
  resize(axis, double(left), double(right + 1), extent);
  const float scale = float(cells + 2) / float(std::max<int64_t>(right - left + 1, 1));
  for (size_t i = 0; i < axis.low.size(); ++i) {
    const float offset = float(axis.first + int64_t(i) - left);
    put(axis, i, (offset + 0.5f) * scale - 0.5f, cells);
  }
}

// COCO's string of run lengths, from the places where pixels go on and off.
class RunWriter {
 public:
  explicit RunWriter(std::string& out) : out_(out) {}

  // From `place` on, pixels in the order of columns are on, or off.
  void set(bool on, int64_t place) {
    if (on == on_) return;
    write(place - edge_);
    edge_ = place;
    on_ = on;
  }

  // There are `pixels` of them.
  void finish(int64_t pixels) {
    if (edge_ < pixels) write(pixels - edge_);
  }

 private:
  // Five bits to a character, the lowest first; from the fourth run on the difference to the one
  // two before.
  void write(int64_t run) {
    int64_t rest = count_ > 2 ? run - previous_[count_ & 1] : run;
    previous_[count_++ & 1] = run;
    for (bool more = true; more;) {
      const int64_t digit = rest & 31;
      rest >>= 5;
      more = rest != ((digit & 16) ? -1 : 0);
      out_.push_back(char(48 + digit + (more ? 32 : 0)));
    }
  }

  std::string& out_;
  int64_t edge_ = 0, count_ = 0;
  int64_t previous_[2] = {0, 0};
  bool on_ = false;
};

class Encoder {
 public:
  Encoder(int64_t cells, int64_t height, int64_t width, float threshold, bool aligned)
      : cells_(cells), height_(height), width_(width), threshold_(threshold), aligned_(aligned),
        mask_(size_t((cells + 2) * (cells + 2))), column_(size_t(cells + 2)) {}

  // The code of one mask [M, M] over a box of four.
  void encode(const float* probs, const float* box, std::string& out) {
    for (int64_t y = 0; y < cells_; ++y) {
      for (int64_t x = 0; x < cells_; ++x) {
        mask_[size_t((x + 1) * (cells_ + 2) + y + 1)] = probs[y * cells_ + x];
      }
    }
    const auto rule = aligned_ ? pixel_centres : whole_pixels;
    rule(box[0], box[2], cells_, width_, columns_);
    rule(box[1], box[3], cells_, height_, rows_);
    cut_rows();
    RunWriter runs(out);
    const size_t count = rows_.low.empty() ? 0 : columns_.low.size();
    const int64_t bottom = rows_.first + int64_t(rows_.low.size());
    // Where the patch is as high as the image, a run may go on in the next column.
    const bool whole_columns = rows_.first == 0 && bottom == height_;
    for (size_t x = 0; x < count; ++x) {
      const int64_t top_of_column = (columns_.first + int64_t(x)) * height_;
      mix_column(columns_.low[x], columns_.weight[x]);
      for (const Segment& segment : segments_) write(segment, top_of_column + rows_.first, runs);
      if (!whole_columns || x + 1 == count) runs.set(false, top_of_column + bottom);
    }
    runs.finish(height_ * width_);
  }

 private:
  void cut_rows() {
    segments_.clear();
    remainder_.resize(rows_.weight.size());
    for (size_t y = 0; y < rows_.low.size(); ++y) {
      remainder_[y] = 1.0f - rows_.weight[y];
      if (segments_.empty() || segments_.back().low != rows_.low[y]) {
        segments_.push_back({rows_.low[y], int64_t(y), int64_t(y)});
      }
      segments_.back().end = int64_t(y) + 1;
    }
  }

  void mix_column(int32_t low, float weight) {
    const float remainder = 1.0f - weight;
    const float* a = &mask_[size_t(low * (cells_ + 2))];
    const float* b = &mask_[size_t(std::min<int64_t>(low + 1, cells_ + 1) * (cells_ + 2))];
    float* mixed = column_.data();
    for (int64_t y = 0; y < cells_ + 2; ++y) mixed[y] = a[y] * remainder + b[y] * weight;
  }

  void write(const Segment& segment, int64_t origin, RunWriter& runs) const {
    const float a = column_[size_t(segment.low)];
    const float b = column_[size_t(std::min<int64_t>(segment.low + 1, cells_ + 1))];
    // A mix lies between its two values, but for four roundings of 2^-24 each and underflow. With
    // a NaN no comparison holds, so that every pixel is looked at.
    const float slack = (std::fabs(a) + std::fabs(b)) * 0x1p-20f + 1e-30f;
    if (std::min(a, b) - slack > threshold_) return runs.set(true, origin + segment.begin);
    if (std::max(a, b) + slack <= threshold_) return runs.set(false, origin + segment.begin);
    for (int64_t y = segment.begin; y < segment.end; ++y) {
      const float value = a * remainder_[size_t(y)] + b * rows_.weight[size_t(y)];
      runs.set(value > threshold_, origin + y);
    }
  }

  const int64_t cells_, height_, width_;
  const float threshold_;
  const bool aligned_;
  std::vector<float> mask_;       // with its border of zeros, column by column
  std::vector<float> column_;     // the bordered mask at one column of pixels
  std::vector<float> remainder_;  // 1 - rows_.weight
  std::vector<Segment> segments_;
  Axis rows_, columns_;
};

// All codes end to end, uint8, and where each begins, int64 [N + 1].
std::tuple<Tensor, Tensor> masks_to_rle(Tensor probs, Tensor boxes, int64_t height, int64_t width,
                                        double threshold, bool aligned) {
  STD_TORCH_CHECK(probs.dim() == 3 && probs.size(1) == probs.size(2) && probs.is_contiguous() &&
                      probs.scalar_type() == ScalarType::Float,
                  "masks_to_rle: probs must be contiguous float32 [N, M, M]");
  const int64_t count = probs.size(0), cells = probs.size(1);
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == count && boxes.size(1) == 4 &&
                      boxes.is_contiguous() && boxes.scalar_type() == ScalarType::Float,
                  "masks_to_rle: boxes must be contiguous float32 [N, 4]");
  const float* masks = static_cast<const float*>(probs.const_data_ptr());
  const float* corners = static_cast<const float*>(boxes.const_data_ptr());
  std::vector<std::string> codes(static_cast<size_t>(count));
  parallel_pieces(count, 1, [&] {
    return [&, encoder = Encoder(cells, height, width, float(threshold), aligned)](
               int64_t begin, int64_t end) mutable {
      for (int64_t n = begin; n < end; ++n) {
        encoder.encode(masks + n * cells * cells, corners + n * 4, codes[size_t(n)]);
      }
    };
  });
  Tensor offsets = torch::stable::empty({count + 1}, ScalarType::Long);
  int64_t* offset = static_cast<int64_t*>(offsets.mutable_data_ptr());
  offset[0] = 0;
  for (int64_t n = 0; n < count; ++n) offset[n + 1] = offset[n] + int64_t(codes[size_t(n)].size());
  Tensor text = torch::stable::empty({offset[count]}, ScalarType::Byte);
  char* out = static_cast<char*>(text.mutable_data_ptr());
  for (const std::string& code : codes) out = std::copy(code.begin(), code.end(), out);
  return {text, offsets};
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_masks_to_rle", TORCH_BOX(&instseg::masks_to_rle));
}
