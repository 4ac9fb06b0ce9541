// The raw ops of this library; what they mean is written at the functions of the same name, without
// "ext_", in instseg/ops. Kernels are registered beside their code.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(instseg, m) {
  m.def(
      "ext_roi_align(Tensor[] features, Tensor rois, Tensor? levels, float[] scales, int height, "
      "int width, int sampling_ratio, bool aligned, bool channels_last) -> Tensor");
  m.def(
      "ext_roi_align_backward(Tensor grad, Tensor rois, Tensor? levels, float[] scales, "
      "int sampling_ratio, bool aligned, int batch, int[] sizes, bool channels_last) -> Tensor[]");
  m.def(
      "ext_nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) "
      "-> (Tensor, Tensor)");
  m.def(
      "ext_sigmoid_focal_loss(Tensor logits, Tensor targets, float alpha, float gamma) -> Tensor");
  m.def(
      "ext_sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor targets, float alpha, "
      "float gamma) -> Tensor");
  m.def(
      "ext_masks_to_rle(Tensor probs, Tensor boxes, int height, int width, float threshold, "
      "bool aligned) -> (Tensor, Tensor)");
  m.def("ext_rle_areas(Tensor text, Tensor begin, Tensor end, Tensor pixels) -> Tensor");
  m.def(
      "ext_rle_pair_iou(Tensor first_text, Tensor first_begin, Tensor first_end, "
      "Tensor second_text, Tensor second_begin, Tensor second_end, Tensor first, Tensor second, "
      "Tensor crowd) -> Tensor");
  m.def("ext_result_columns(Tensor text) -> Tensor[]");
  m.def(
      "ext_precision_recall(Tensor found, Tensor ignored, Tensor rank, Tensor objects, "
      "Tensor recalls, Tensor limits) -> (Tensor, Tensor)");
  m.def(
      "ext_bootstrap_precision(Tensor found, Tensor ignored, Tensor rank, Tensor image, "
      "Tensor weights, Tensor objects, Tensor recalls, Tensor limits) -> (Tensor, Tensor)");
}
