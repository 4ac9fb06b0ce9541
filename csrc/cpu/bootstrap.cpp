// Average precision of many weighted copies of one data set, in one pass over its detections.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "parallel.h"

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Replicates that are worked on side by side.
constexpr int64_t kLanes = 32;
// Additions from which on threads are worth their while.
constexpr int64_t kWorthThreads = int64_t(1) << 23;
using Counts = std::array<int32_t, kLanes>;

struct Problem {
  const bool *found, *ignored;       // [N, T], best score first
  const int64_t *rank, *image;       // [N]
  const int32_t* weights;            // [images, B]
  const int64_t* objects;            // [B]
  const double* recalls;             // [R], ascending
  const int64_t* limits;             // [M]
  int64_t detections, thresholds, replicates, recall_count, limit_count;
};

// One threshold's detections so far.
struct Threshold {
  Counts counted{}, hits{};
  // Both at each hit: precision is highest there.
  std::vector<Counts> counted_at, hits_at;
};

class Block {
 public:
  Block(const Problem& p, int64_t first)
      : p_(p), first_(first), lanes_(std::min(kLanes, p.replicates - first)),
        levels_(size_t(p.thresholds)), within_(size_t(p.thresholds * p.limit_count)) {}

  void run(double* precision, int64_t* hits) {
    for (int64_t n = 0; n < p_.detections; ++n) take(n);
    for (int64_t lane = 0; lane < lanes_; ++lane) count_recalls(lane);
    for (int64_t t = 0; t < p_.thresholds; ++t) {
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        const int64_t row = (first_ + lane) * p_.thresholds + t;
        precision[row] = average(levels_[size_t(t)], lane);
        for (int64_t m = 0; m < p_.limit_count; ++m) {
          hits[row * p_.limit_count + m] = within_[size_t(t * p_.limit_count + m)][size_t(lane)];
        }
      }
    }
  }

 private:
  void take(int64_t n) {
    Counts weight{};
    const int32_t* drawn = p_.weights + p_.image[n] * p_.replicates + first_;
    std::copy(drawn, drawn + lanes_, weight.begin());
    for (int64_t t = 0; t < p_.thresholds; ++t) {
      if (p_.ignored[n * p_.thresholds + t]) continue;
      Threshold& level = levels_[size_t(t)];
      add(weight, level.counted);
      if (!p_.found[n * p_.thresholds + t]) continue;
      add(weight, level.hits);
      level.counted_at.push_back(level.counted);
      level.hits_at.push_back(level.hits);
      for (int64_t m = 0; m < p_.limit_count; ++m) {
        if (p_.rank[n] < p_.limits[m]) add(weight, within_[size_t(t * p_.limit_count + m)]);
      }
    }
  }

  static void add(const Counts& weight, Counts& sum) {
    for (size_t lane = 0; lane < kLanes; ++lane) sum[lane] += weight[lane];
  }

  // passed_[lane][n]: how many of the recalls n hits reach. Recall 0 is read off at the first hit.
  void count_recalls(int64_t lane) {
    std::vector<int32_t>& passed = passed_[size_t(lane)];
    const int64_t objects = p_.objects[first_ + lane];
    passed.assign(size_t(objects) + 1, 0);
    int32_t r = 0;
    for (int64_t n = 1; n <= objects; ++n) {
      const double recall = double(n) / double(objects);
      while (r < p_.recall_count && p_.recalls[r] <= recall) ++r;
      passed[size_t(n)] = r;
    }
  }

  double average(const Threshold& level, int64_t lane) const {
    const std::vector<int32_t>& passed = passed_[size_t(lane)];
    const size_t l = size_t(lane);
    double best = 0, sum = 0;
    for (size_t j = level.hits_at.size(); j-- > 0;) {
      const int32_t hits = level.hits_at[j][l], before = j > 0 ? level.hits_at[j - 1][l] : 0;
      if (hits == 0) break;  // nor were there any before
      best = std::max(best, double(hits) / double(level.counted_at[j][l]));
      const size_t most = passed.size() - 1;
      sum += best * (passed[std::min(size_t(hits), most)] - passed[std::min(size_t(before), most)]);
    }
    return sum / double(p_.recall_count);
  }

  const Problem& p_;
  int64_t first_, lanes_;
  std::vector<Threshold> levels_;
  std::vector<Counts> within_;
  std::array<std::vector<int32_t>, kLanes> passed_;
};

std::tuple<Tensor, Tensor> bootstrap_precision(const Tensor& found, const Tensor& ignored,
                                               const Tensor& rank, const Tensor& image,
                                               const Tensor& weights, const Tensor& objects,
                                               const Tensor& recalls, const Tensor& limits) {
  STD_TORCH_CHECK(found.dim() == 2 && weights.dim() == 2,
                  "bootstrap_precision: found must be [N, T] and weights [images, B]");
  const int64_t n = found.size(0), t = found.size(1), b = weights.size(1);
  const Arguments given("bootstrap_precision");
  const Problem problem{
      given.data<bool>(found, ScalarType::Bool, n * t, "found"),
      given.data<bool>(ignored, ScalarType::Bool, n * t, "ignored"),
      given.data<int64_t>(rank, ScalarType::Long, n, "rank"),
      given.data<int64_t>(image, ScalarType::Long, n, "image"),
      given.data<int32_t>(weights, ScalarType::Int, weights.size(0) * b, "weights"),
      given.data<int64_t>(objects, ScalarType::Long, b, "objects"),
      given.data<double>(recalls, ScalarType::Double, recalls.numel(), "recalls"),
      given.data<int64_t>(limits, ScalarType::Long, limits.numel(), "limits"),
      n, t, b, recalls.numel(), limits.numel()};
  for (int64_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(problem.image[i] >= 0 && problem.image[i] < weights.size(0),
                    "bootstrap_precision: an image is out of range");
  }
  for (int64_t i = 0; i < b; ++i) {
    STD_TORCH_CHECK(problem.objects[i] >= 0, "bootstrap_precision: objects must not be negative");
  }
  Tensor precision = torch::stable::empty({b, t}, ScalarType::Double);
  Tensor hits = torch::stable::empty({b, t, problem.limit_count}, ScalarType::Long);
  double* precision_out = static_cast<double*>(precision.mutable_data_ptr());
  int64_t* hits_out = static_cast<int64_t*>(hits.mutable_data_ptr());
  // Waking other threads costs more than a small problem does.
  const bool small = n * t * b < kWorthThreads;
  parallel_pieces(b, small ? std::max(b, kLanes) : kLanes, [&] {
    return [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += kLanes) Block(problem, begin).run(precision_out, hits_out);
    };
  });
  return {precision, hits};
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_bootstrap_precision", TORCH_BOX(&instseg::bootstrap_precision));
}
