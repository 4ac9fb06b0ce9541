// COCO's run-length strings: whether they are sound, and the IoU of pairs of masks.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Reads the runs of one string; instseg/ops/rle.py describes the code. A string that is not sound
// ends early, and nothing is read outside it.
class RunReader {
 public:
  RunReader(const uint8_t* text, const uint8_t* end) : at_(text), end_(end) {}

  // False at the end, and where the string is not sound.
  bool next(int64_t& run) {
    if (at_ == end_) return false;
    int64_t value = 0;
    for (int shift = 0;; shift += 5) {
      if (at_ == end_ || shift > 30) return fail();  // cut short, or a number over 35 bits
      const int digit = int(*at_++) - 48;
      if (digit < 0 || digit > 63) return fail();
      value |= int64_t(digit & 31) << shift;
      if (digit & 32) continue;
      if (digit & 16) value -= int64_t(1) << (shift + 5);
      break;
    }
    if (count_ > 2) value += previous_[count_ & 1];
    previous_[count_++ & 1] = value;
    if (value < 0) return fail();
    run = value;
    return true;
  }

  bool sound() const { return sound_; }

 private:
  bool fail() {
    sound_ = false;
    at_ = end_;
    return false;
  }

  const uint8_t *at_, *end_;
  int64_t count_ = 0;
  int64_t previous_[2] = {0, 0};
  bool sound_ = true;
};

// N strings within one text.
struct Strings {
  Strings(const Tensor& text, const Tensor& begin, const Tensor& end)
      : text(static_cast<const uint8_t*>(text.const_data_ptr())),
        begin(static_cast<const int64_t*>(begin.const_data_ptr())),
        end(static_cast<const int64_t*>(end.const_data_ptr())),
        count(end.numel()) {
    STD_TORCH_CHECK(text.scalar_type() == ScalarType::Byte && text.is_contiguous() &&
                        begin.scalar_type() == ScalarType::Long && begin.is_contiguous() &&
                        end.scalar_type() == ScalarType::Long && end.is_contiguous() &&
                        begin.numel() == count,
                    "run lengths: text must be uint8, begin and end int64, all contiguous");
    for (int64_t n = 0; n < count; ++n) {
      STD_TORCH_CHECK(0 <= this->begin[n] && this->begin[n] <= this->end[n] &&
                          this->end[n] <= text.numel(),
                      "run lengths: a string must lie within the text");
    }
  }
  RunReader operator[](int64_t n) const { return {text + begin[n], text + end[n]}; }

  const uint8_t* text;
  const int64_t *begin, *end;
  int64_t count;
};

// The foreground of one string; -1 where it is not sound or does not add up to `pixels`.
int64_t area_of(RunReader reader, int64_t pixels) {
  int64_t sums[2] = {0, 0}, runs = 0;
  // A sum over 2^62 is no image's; stopping there keeps it from running over.
  for (int64_t run; sums[0] + sums[1] < (int64_t(1) << 61) && reader.next(run); ++runs) {
    sums[runs & 1] += run;
  }
  return runs > 0 && reader.sound() && sums[0] + sums[1] == pixels ? sums[1] : -1;
}

Tensor rle_areas(const Tensor& text, const Tensor& begin, const Tensor& end,
                 const Tensor& pixels) {
  const Strings strings(text, begin, end);
  STD_TORCH_CHECK(pixels.scalar_type() == ScalarType::Long && pixels.is_contiguous() &&
                      pixels.numel() == strings.count,
                  "rle_areas: pixels must be contiguous int64 [N]");
  const int64_t* wanted = static_cast<const int64_t*>(pixels.const_data_ptr());
  Tensor result = torch::stable::empty({strings.count}, ScalarType::Long);
  int64_t* out = static_cast<int64_t*>(result.mutable_data_ptr());
  parallel_pieces(strings.count, 1024, [&] {
    return [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) out[n] = area_of(strings[n], wanted[n]);
    };
  });
  return result;
}

// The foreground of a mask, as stretches of pixels in the order of columns.
struct Foreground {
  std::vector<int64_t> begin, end;
  int64_t area = 0;

  void read(RunReader reader) {
    begin.clear();
    end.clear();
    area = 0;
    int64_t place = 0;
    bool on = false;
    for (int64_t run; reader.next(run); on = !on) {
      if (on && run > 0) {
        begin.push_back(place);
        end.push_back(place + run);
        area += run;
      }
      place += run;
    }
  }

  int64_t shared_with(const Foreground& other) const {
    int64_t shared = 0;
    for (size_t i = 0, j = 0; i < begin.size() && j < other.begin.size();) {
      shared += std::max<int64_t>(
          0, std::min(end[i], other.end[j]) - std::max(begin[i], other.begin[j]));
      (end[i] < other.end[j] ? i : j) += 1;
    }
    return shared;
  }
};

Tensor rle_pair_iou(const Tensor& first_text, const Tensor& first_begin, const Tensor& first_end,
                    const Tensor& second_text, const Tensor& second_begin,
                    const Tensor& second_end, const Tensor& first, const Tensor& second,
                    const Tensor& crowd) {
  const Strings own(first_text, first_begin, first_end);
  const Strings others(second_text, second_begin, second_end);
  const int64_t pairs = first.numel();
  STD_TORCH_CHECK(first.scalar_type() == ScalarType::Long && first.is_contiguous() &&
                      second.scalar_type() == ScalarType::Long && second.is_contiguous() &&
                      crowd.scalar_type() == ScalarType::Bool && crowd.is_contiguous() &&
                      second.numel() == pairs && crowd.numel() == pairs,
                  "rle_pair_iou: first and second must be int64 [P], crowd bool [P]");
  const int64_t* left = static_cast<const int64_t*>(first.const_data_ptr());
  const int64_t* right = static_cast<const int64_t*>(second.const_data_ptr());
  const bool* inside = static_cast<const bool*>(crowd.const_data_ptr());
  std::vector<bool> used(size_t(others.count));
  for (int64_t p = 0; p < pairs; ++p) {
    STD_TORCH_CHECK(left[p] >= 0 && left[p] < own.count && right[p] >= 0 && right[p] < others.count,
                    "rle_pair_iou: an index is out of range");
    used[size_t(right[p])] = true;
  }
  std::vector<Foreground> objects(size_t(others.count));
  parallel_pieces(others.count, 64, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        if (used[size_t(n)]) objects[size_t(n)].read(others[n]);
      }
    };
  });
  Tensor result = torch::stable::empty({pairs}, ScalarType::Double);
  double* out = static_cast<double*>(result.mutable_data_ptr());
  parallel_pieces(pairs, 1024, [&] {
    return [&, mask = Foreground(), last = int64_t(-1)](int64_t begin, int64_t end) mutable {
      for (int64_t p = begin; p < end; ++p) {
        if (left[p] != last) mask.read(own[last = left[p]]);
        const Foreground& object = objects[size_t(right[p])];
        const int64_t shared = mask.shared_with(object);
        const int64_t all = inside[p] ? mask.area : mask.area + object.area - shared;
        out[p] = all > 0 ? double(shared) / double(all) : 0.0;
      }
    };
  });
  return result;
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_rle_areas", TORCH_BOX(&instseg::rle_areas));
  m.impl("ext_rle_pair_iou", TORCH_BOX(&instseg::rle_pair_iou));
}
