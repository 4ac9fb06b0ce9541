// Focal loss and its gradient, each in one pass over memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "kernels.h"

namespace instseg {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;

const float* floats(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

Tensor focal_loss(Tensor logits, Tensor targets, double alpha, double gamma) {
  Tensor out = torch::stable::empty_like(logits);
  float* loss = static_cast<float*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, logits.numel(), kGrain, [&](int64_t begin, int64_t end) {
    scalar_kernels().focal_loss(floats(logits) + begin, floats(targets) + begin, end - begin,
                                float(alpha), float(gamma), loss + begin);
  });
  return out;
}

// `grad` is of the shape of the logits, or one value for all.
Tensor focal_loss_backward(Tensor grad, Tensor logits, Tensor targets, double alpha,
                           double gamma) {
  Tensor out = torch::stable::empty_like(logits);
  float* result = static_cast<float*>(out.mutable_data_ptr());
  const int64_t step = grad.numel() == 1 ? 0 : 1;
  torch::stable::parallel_for(0, logits.numel(), kGrain, [&](int64_t begin, int64_t end) {
    scalar_kernels().focal_loss_grad(floats(grad) + begin * step, step, floats(logits) + begin,
                                     floats(targets) + begin, end - begin, float(alpha),
                                     float(gamma), result + begin);
  });
  return out;
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_sigmoid_focal_loss", TORCH_BOX(&instseg::focal_loss));
  m.impl("ext_sigmoid_focal_loss_backward", TORCH_BOX(&instseg::focal_loss_backward));
}
