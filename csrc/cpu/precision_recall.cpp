// COCO's precision and recall tables of one category, in pycocotools' order of operations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "arguments.h"

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> precision_recall(const Tensor& found, const Tensor& ignored,
                                            const Tensor& rank, const Tensor& objects,
                                            const Tensor& recalls, const Tensor& limits) {
  STD_TORCH_CHECK(found.dim() == 3, "precision_recall: found must be [N, T, A]");
  const int64_t n = found.size(0), t = found.size(1), a = found.size(2);
  const int64_t r = recalls.numel(), m = limits.numel();
  const Arguments given("precision_recall");
  const bool* hit = given.data<bool>(found, ScalarType::Bool, n * t * a, "found");
  const bool* left_out = given.data<bool>(ignored, ScalarType::Bool, n * t * a, "ignored");
  const int64_t* ranks = given.data<int64_t>(rank, ScalarType::Long, n, "rank");
  const int64_t* wanted = given.data<int64_t>(objects, ScalarType::Long, a, "objects");
  const double* at = given.data<double>(recalls, ScalarType::Double, r, "recalls");
  const int64_t* most = given.data<int64_t>(limits, ScalarType::Long, m, "limits");

  Tensor precision = torch::stable::empty({t, r, a, m}, ScalarType::Double);
  Tensor recall = torch::stable::empty({t, a, m}, ScalarType::Double);
  double* precision_out = static_cast<double*>(precision.mutable_data_ptr());
  double* recall_out = static_cast<double*>(recall.mutable_data_ptr());
  // Of each threshold, area and limit: detections so far, and the precision at each hit.
  std::vector<int64_t> counted(size_t(t * a * m));
  std::vector<std::vector<double>> curves(size_t(t * a * m));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t cell = 0; cell < t * a; ++cell) {
      if (left_out[i * t * a + cell]) continue;
      for (int64_t limit = 0; limit < m; ++limit) {
        if (ranks[i] >= most[limit]) continue;
        const size_t row = size_t(cell * m + limit);
        ++counted[row];
        if (!hit[i * t * a + cell]) continue;
        // With COCO's guard against 0 / 0, for equal rounding.
        curves[row].push_back(double(curves[row].size() + 1) /
                              (double(counted[row]) + std::numeric_limits<double>::epsilon()));
      }
    }
  }
  for (int64_t row = 0; row < t * a * m; ++row) {
    const int64_t limit = row % m, area = row / m % a, level = row / m / a;
    const int64_t total = wanted[area];
    std::vector<double>& curve = curves[size_t(row)];
    const int64_t hits = int64_t(curve.size());
    for (int64_t i = hits - 1; i > 0; --i) {
      curve[size_t(i - 1)] = std::max(curve[size_t(i - 1)], curve[size_t(i)]);
    }
    int64_t reached = 0;  // the first hit at which a recall is reached
    for (int64_t k = 0; k < r; ++k) {
      while (reached < hits && double(reached + 1) / double(total) < at[k]) ++reached;
      precision_out[((level * r + k) * a + area) * m + limit] =
          total == 0 ? -1.0 : reached < hits ? curve[size_t(reached)] : 0.0;
    }
    recall_out[row] = total == 0 ? -1.0 : double(hits) / double(total);
  }
  return {precision, recall};
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_precision_recall", TORCH_BOX(&instseg::precision_recall));
}
