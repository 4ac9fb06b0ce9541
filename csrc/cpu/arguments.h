// Pointers to the elements of the tensors an op was given, once they are what it reads them as.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace instseg {

class Arguments {
 public:
  explicit Arguments(const char* op) : op_(op) {}

  // Raises, naming the op and `what`, unless `tensor` has `count` elements of `type` in a row.
  template <typename T>
  const T* data(const torch::stable::Tensor& tensor, torch::headeronly::ScalarType type,
                int64_t count, const char* what) const {
    STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous() &&
                        tensor.numel() == count,
                    op_, ": ", what, " has another type, layout or length");
    return static_cast<const T*>(tensor.const_data_ptr());
  }

 private:
  const char* op_;
};

}  // namespace instseg
