// Which feature pixels the bilinear samples of a RoI touch, axis by axis, and with what weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace instseg {

template <typename A>
struct Tap {
  int32_t pixel;
  A weight;
};

// One axis of one RoI: where the first bin begins, the length of a bin, the samples in a bin. The
// expressions are those of instseg/ops/_torch/bilinear.py, in the same order and precision.
template <typename A>
struct Axis {
  A start;
  A bin;
  A count;
  bool adaptive;

  Axis(A low, A high, A scale, bool aligned, int64_t bins, int64_t sampling_ratio) {
    const A shift = aligned ? A(0.5) : A(0);
    start = low * scale - shift;
    A length = high * scale - shift - start;
    if (!aligned) length = std::max(length, A(1));
    bin = length / A(bins);
    adaptive = sampling_ratio <= 0;
    count = !adaptive ? A(sampling_ratio) : std::max(std::ceil(bin), A(0));
  }

  // Samples of a bin that can touch a map of `size` pixels: adaptive ones are more than half a
  // pixel apart, so that those of a huge RoI which do are few.
  int64_t slots(int64_t size) const {
    return int64_t(adaptive ? std::min(count, A(2 * (size + 4))) : count);
  }
};

// Taps of all bins of an axis, bin after bin; `ends[i]` is where bin i ends.
template <typename A>
struct AxisTaps {
  std::vector<Tap<A>> taps;
  std::vector<int32_t> ends;

  void build(const Axis<A>& axis, int64_t bins, int64_t size) {
    taps.clear();
    ends.clear();
    const int64_t slots = axis.slots(size);
    const A spacing = axis.count > 0 ? axis.bin / axis.count : A(0);
    for (int64_t i = 0; i < bins; ++i) {
      const A begin = axis.start + A(i) * axis.bin;
      A first = 0;
      if (axis.count > A(slots) && spacing > 0) {
        first = std::max(std::floor((A(-1) - begin) / spacing - A(0.5)) - 1, A(0));
      }
      const size_t from = taps.size();
      for (int64_t s = 0; s < slots; ++s) {
        const A number = first + A(s);
        if (number >= axis.count) break;
        add(begin + (number + A(0.5)) * axis.bin / axis.count, size, 1 / axis.count, from);
      }
      ends.push_back(int32_t(taps.size()));
    }
  }

 private:
  void add(A position, int64_t size, A share, size_t from) {
    if (!(position >= -1 && position <= A(size))) return;
    position = std::min(std::max(position, A(0)), A(size - 1));
    const int32_t low = int32_t(position);
    const A upper = position - A(low);
    merge({low, (1 - upper) * share}, from);
    if (upper > 0) merge({low + 1, upper * share}, from);
  }

  // Neighbouring samples share pixels: the last two taps of the bin are the candidates.
  void merge(Tap<A> tap, size_t from) {
    for (size_t back = 1; back <= 2 && taps.size() >= from + back; ++back) {
      Tap<A>& earlier = taps[taps.size() - back];
      if (earlier.pixel == tap.pixel) {
        earlier.weight += tap.weight;
        return;
      }
    }
    taps.push_back(tap);
  }
};

// The same pairs by pixel: `taps[k].pixel` is a bin here, of pixel `first + p` for k in
// starts[p]..starts[p + 1].
template <typename A>
struct PixelTaps {
  int64_t first = 0;
  int64_t count = 0;
  std::vector<int32_t> starts;
  std::vector<Tap<A>> taps;

  void build(const AxisTaps<A>& axis) {
    count = 0;
    if (axis.taps.empty()) return;
    int32_t low = axis.taps[0].pixel, high = low;
    for (const Tap<A>& tap : axis.taps) {
      low = std::min(low, tap.pixel);
      high = std::max(high, tap.pixel);
    }
    first = low;
    count = high - low + 1;
    starts.assign(size_t(count) + 2, 0);
    for (const Tap<A>& tap : axis.taps) ++starts[size_t(tap.pixel - low) + 2];
    for (size_t p = 2; p < starts.size(); ++p) starts[p] += starts[p - 1];
    taps.resize(axis.taps.size());
    size_t k = 0;
    for (size_t bin = 0; bin < axis.ends.size(); ++bin) {
      for (; k < size_t(axis.ends[bin]); ++k) {
        const Tap<A>& tap = axis.taps[k];
        taps[size_t(starts[size_t(tap.pixel - low) + 1]++)] = {int32_t(bin), tap.weight};
      }
    }
  }
};

}  // namespace instseg
