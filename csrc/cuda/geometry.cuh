// Where the bilinear samples of RoIs fall: what instseg/ops/_torch/bilinear.py does, one axis of
// one RoI at a time.
#pragma once

#include <cmath>
#include <cstdint>

namespace instseg {

// A product that never fuses with a sum: sample counts and the border of a map jump at exact
// values, and IoUs are compared with a threshold, so that every rounding must be that of PyTorch.
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }

// One level of a feature pyramid.
template <typename T, typename R>
struct Level {
  T* data;
  int height, width;
  R scale;  // feature pixels per image pixel
};

constexpr int MAX_LEVELS = 16;

template <typename T, typename R>
struct Pyramid {
  Level<T, R> levels[MAX_LEVELS];
  int count;
  int64_t batch, channels;
};

struct Pooling {
  int height, width;  // bins
  int sampling_ratio;
  bool aligned;
};

template <typename R>
struct RoI {
  int64_t image;
  int level;  // -1: the RoI has no place, so that its values are 0
  R x1, y1, x2, y2;  // image pixels

  __device__ RoI(const R* rois, const int64_t* levels, int64_t k, int level_count, int64_t batch) {
    const R* row = rois + k * 5;
    x1 = row[1], y1 = row[2], x2 = row[3], y2 = row[4];
    const int64_t wanted = levels == nullptr ? 0 : levels[k];
    const bool finite = isfinite(x1) && isfinite(y1) && isfinite(x2) && isfinite(y2);
    const bool exists = row[0] >= 0 && row[0] < R(batch) && wanted >= 0 && wanted < level_count;
    level = finite && exists ? int(wanted) : -1;
    image = level < 0 ? 0 : int64_t(row[0]);
  }
};

template <typename R>
struct Axis {
  R start;    // where the first bin begins, in feature pixels
  R bin;      // length of a bin
  R count;    // samples in a bin, a whole number
  int slots;  // samples of a bin that are looked at
  int size;   // pixels of the map

  __device__ Axis(R low, R high, R scale, int bins, int size, const Pooling& pooling) : size(size) {
    const R shift = pooling.aligned ? R(0.5) : R(0);
    start = times(low, scale) - shift;
    R length = times(high, scale) - shift - start;
    if (!pooling.aligned) length = fmax(length, R(1));
    bin = length / bins;
    if (pooling.sampling_ratio > 0) {
      count = R(pooling.sampling_ratio);
      slots = pooling.sampling_ratio;
    } else {
      // They are more than half a pixel apart: of a huge box only those near the map matter.
      count = fmax(ceil(bin), R(0));
      slots = int(fmin(count, 2 * (R(size) + 4)));
    }
  }

  // Of R instead of int, as the numbers of samples of a huge box pass every integer.
  __device__ R begin(int number) const { return start + times(R(number), bin); }
  __device__ R divisor() const { return fmax(count, R(1)); }

  // The number of the first sample looked at in the bin that begins at `begin`.
  __device__ R skipped(R begin) const {
    const R spacing = bin / divisor();
    if (!(count > R(slots) && spacing > 0)) return 0;
    const R first = floor((-1 - begin) / spacing - R(0.5)) - 1;
    return isfinite(first) ? fmax(first, R(0)) : R(0);
  }

  // Pixels `low` and, unless `upper` is 0, `low + 1` share sample `number` as 1 - upper : upper.
  // False: the sample is more than a pixel outside the map, or there is none.
  __device__ bool sample(R begin, R number, int& low, R& upper) const {
    R position = begin + times(number + R(0.5), bin) / divisor();
    if (!(number < count && position >= -1 && position <= R(size))) return false;
    position = fmin(fmax(position, R(0)), R(size - 1));
    low = int(position);
    upper = position - R(low);
    return true;
  }

  // Narrow the samples 0..slots of a bin to [first, last), which holds all that can touch the
  // pixels [low, high), with two to spare for rounding.
  __device__ void narrow(R begin, int low, int high, int& first, int& last) const {
    first = 0;
    last = slots;
    const R spacing = bin / divisor();
    if (!(spacing > 0) || count > R(slots)) return;
    const R from = floor((R(low) - 1 - begin) / spacing - R(0.5)) - 2;
    const R to = ceil((R(high) - begin) / spacing - R(0.5)) + 3;
    first = int(fmin(fmax(from, R(0)), R(slots)));
    last = int(fmin(fmax(to, R(0)), R(slots)));
  }

  // Whether a sample can touch the pixels [low, high); true more often than needed.
  __device__ bool touches(int low, int high, int bins) const {
    const R end = start + bin * bins;
    constexpr R rounding = sizeof(R) == 4 ? R(1e-6) : R(2e-15);
    const R slack = 1 + (fabs(start) + fabs(end)) * rounding;
    // Both of these are false for what is not a number.
    return !(fmax(start, end) + slack < R(low - 1)) && !(fmin(start, end) - slack > R(high));
  }
};

// A pixel along an axis, and what it weighs in a bin.
template <typename R>
struct Tap {
  int pixel;
  R weight;
};

template <typename R>
__device__ inline int add_tap(Tap<R>* taps, int count, int pixel, R weight) {
  // Neighbouring samples share pixels.
  for (int back = 1; back <= 2 && back <= count; ++back) {
    if (taps[count - back].pixel == pixel) {
      taps[count - back].weight += weight;
      return count;
    }
  }
  taps[count] = {pixel, weight};
  return count + 1;
}

// The taps of samples [first, last) of a bin, at most two for each sample; returns how many.
template <typename R>
__device__ inline int fill_taps(const Axis<R>& axis, int bin, int first, int last, Tap<R>* taps) {
  const R begin = axis.begin(bin), skipped = axis.skipped(begin), share = 1 / axis.divisor();
  int count = 0;
  for (int s = first; s < last; ++s) {
    int low;
    R upper;
    if (!axis.sample(begin, R(s) + skipped, low, upper)) continue;
    count = add_tap(taps, count, low, (1 - upper) * share);
    if (upper > 0) count = add_tap(taps, count, low + 1, upper * share);
  }
  return count;
}

}  // namespace instseg
