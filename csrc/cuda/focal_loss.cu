// Focal loss (Lin et al., 2017, equation 5) and its gradient, each in one pass over memory.
#include "common.cuh"

namespace instseg {
namespace {

constexpr int THREADS = 256;

template <typename R>
struct Focal {
  R alpha, gamma;  // alpha < 0: no weighting of the classes

  // Of one logit and its target in [0, 1]; the derivative instead if `slope`.
  __device__ R operator()(R x, R t, bool slope) const {
    const R small = exp(-fabs(x));
    const R larger = 1 / (1 + small), smaller = small * larger;
    // Probabilities of both answers, each exact where it is small.
    const R yes = x >= 0 ? larger : smaller, no = x >= 0 ? smaller : larger;
    const R entropy = fmax(x, R(0)) - x * t + log1p(small);
    const R miss = yes * (1 - t) + no * t;  // 1 - p_t
    const R weight = alpha < 0 ? R(1) : alpha * t + (1 - alpha) * (1 - t);
    const R focus = weight * (gamma == 2 ? miss * miss : pow(miss, gamma));
    if (!slope) return entropy * focus;
    // miss^(gamma - 1) alone overflows for small misses and gamma < 1; this quotient is at most 1.
    const R turn = miss > 0 ? yes * no / miss : R(0);
    return focus * (yes - t + gamma * entropy * turn * (1 - 2 * t));
  }
};

template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    apply(Focal<Real<T>> focal, const T* logits, const T* targets, int64_t packs, T* output) {
  using R = Real<T>;
  const int64_t n = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (n >= packs) return;
  const auto x = load<T, V>(logits + n * V), t = load<T, V>(targets + n * V);
  Pack<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.values[v] = T(focal(R(x.values[v]), R(t.values[v]), false));
  store(output + n * V, result);
}

// `one`: grad is one value for all.
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    apply_backward(Focal<Real<T>> focal, const T* grad, bool one, const T* logits,
                   const T* targets, int64_t packs, T* output) {
  using R = Real<T>;
  const int64_t n = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (n >= packs) return;
  const auto x = load<T, V>(logits + n * V), t = load<T, V>(targets + n * V);
  Pack<T, V> result;
  if (!one) result = load<T, V>(grad + n * V);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const R above = R(one ? *grad : result.values[v]);
    result.values[v] = T(above * focal(R(x.values[v]), R(t.values[v]), true));
  }
  store(output + n * V, result);
}

// Calls `run` with the C++ dtype and whether packs of 16 bytes fit all of the data.
template <typename Run>
void with_packs(const Tensor& output, std::initializer_list<const Tensor*> inputs, Run&& run) {
  dispatch(output.scalar_type(), [&](auto zero) {
    bool vector = true;
    const auto fits = [&](const Tensor& t) {
      return packs(t.const_data_ptr(), output.numel(), sizeof(zero), 16);
    };
    vector = fits(output);
    for (const Tensor* input : inputs) vector = vector && fits(*input);
    run(zero, vector);
  });
}

Tensor same_dtype(const Tensor& targets, const Tensor& logits) {
  return torch::stable::contiguous(torch::stable::to(targets, logits.scalar_type()));
}

Tensor focal_loss(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  const OnDevice device(logits);
  const Tensor x = torch::stable::contiguous(logits), t = same_dtype(targets, logits);
  const Tensor output = torch::stable::empty_like(x);
  with_packs(output, {&x, &t}, [&](auto zero, bool vector) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const Focal<Real<T>> focal{Real<T>(alpha), Real<T>(gamma)};
    const auto run = [&](auto kernel, int64_t wide) {
      const int64_t packs = output.numel() / wide;
      device.launch(kernel, ceil_div(packs, int64_t(THREADS)), 1, THREADS, focal,
                    x.const_data_ptr<T>(), t.const_data_ptr<T>(), packs,
                    output.mutable_data_ptr<T>());
    };
    vector ? run(apply<T, V>, V) : run(apply<T, 1>, 1);
  });
  return output;
}

// A scalar, or a scalar that was expanded, as the gradient of a sum is.
bool one_value(const Tensor& grad) {
  if (grad.numel() == 1) return true;
  for (int64_t d = 0; d < grad.dim(); ++d) {
    if (grad.size(d) > 1 && grad.stride(d) != 0) return false;
  }
  return true;
}

Tensor focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets,
                           double alpha, double gamma) {
  const OnDevice device(logits);
  const Tensor x = torch::stable::contiguous(logits), t = same_dtype(targets, logits);
  const bool one = one_value(grad);
  const Tensor above = one ? grad : torch::stable::contiguous(grad);
  const Tensor output = torch::stable::empty_like(x);
  // One value needs no alignment: the output stands in for it.
  with_packs(output, {&x, &t, one ? &output : &above}, [&](auto zero, bool vector) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const Focal<Real<T>> focal{Real<T>(alpha), Real<T>(gamma)};
    const auto run = [&](auto kernel, int64_t wide) {
      const int64_t packs = output.numel() / wide;
      device.launch(kernel, ceil_div(packs, int64_t(THREADS)), 1, THREADS, focal,
                    above.const_data_ptr<T>(), one, x.const_data_ptr<T>(), t.const_data_ptr<T>(),
                    packs, output.mutable_data_ptr<T>());
    };
    vector ? run(apply_backward<T, V>, V) : run(apply_backward<T, 1>, 1);
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instseg, CUDA, m) {
  m.impl("ext_sigmoid_focal_loss", TORCH_BOX(&focal_loss));
  m.impl("ext_sigmoid_focal_loss_backward", TORCH_BOX(&focal_loss_backward));
}

}  // namespace instseg
