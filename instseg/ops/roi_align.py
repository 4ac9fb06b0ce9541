"""RoIAlign (He et al., Mask R-CNN, 2017, section 3), on one feature map or a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.ops import backend, check
from instseg.ops.layout import is_channels_last, memory_format


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
) -> Tensor:
    """Average of bilinear samples in each bin of each box.

    Samples more than one pixel outside the feature map count as 0, those up to one pixel outside
    take the value of the border. Sums are float32 (float64 for float64 input). The gradient goes to
    ``input`` alone; it does not depend on the number of threads, and on a GPU not on chance.

    Args:
        input: feature map ``[B, C, H, W]``, float16, bfloat16, float32 or float64.
        boxes: ``[K, 5]`` rows (batch index, x1, y1, x2, y2), or a list of B tensors ``[K_b, 4]``,
            in image coordinates.
        output_size: (height, width) of the pooled map, or one number for both.
        spatial_scale: feature pixels per image pixel, e.g. 1/4 for a stride of 4.
        sampling_ratio: samples along each axis of a bin; <= 0 means ceil(bin size).
        aligned: True shifts by half a pixel, so that continuous image coordinates are honoured
            (detectron2's convention). False is the convention of torchvision's checkpoints. Unlike
            torchvision's function, the default is True.

    Returns:
        ``[K, C, output_height, output_width]`` in the dtype and memory format of ``input``.

    Raises:
        ValueError: a wrong shape or size, boxes that are not finite or a batch index out of range.
            On a GPU these two are looked for only under ``INSTSEG_DEBUG=1``: without, such a box
            gives zeros.
        TypeError: a wrong dtype.
    """
    check.feature_map("input", input)
    rois = check.rois("boxes", boxes, input)
    height, width = check.output_size("output_size", output_size)
    check.positive("spatial_scale", spatial_scale)
    pooled: Tensor = torch.ops.instseg.roi_align(
        [input], rois, None, [spatial_scale], height, width, sampling_ratio, aligned
    )
    return pooled


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """Pool each box from the level of a feature pyramid that fits its size, in one call.

    Args:
        features: L maps ``[B, C, H_l, W_l]`` of one dtype, fine to coarse.
        boxes: ``[K, 5]`` rows (batch index, x1, y1, x2, y2), or a list of B tensors ``[K_b, 4]``,
            in image coordinates.
        output_size: (height, width) of the pooled map, or one number for both.
        strides: L consecutive powers of two, image pixels per pixel of each map.
        sampling_ratio: see `roi_align`.
        aligned: likewise.
        canonical_size: a square box of this side in pixels belongs to ``canonical_level``.
        canonical_level: base-2 logarithm of that level's stride.

    Returns:
        ``[K, C, output_height, output_width]`` in the order of the boxes and the memory format of
        the first map.

    Raises:
        ValueError: as in `roi_align`, or the maps or strides do not fit together.
        TypeError: a wrong dtype.
    """
    check.pyramid(features, strides)
    rois = check.rois("boxes", boxes, features[0])
    height, width = check.output_size("output_size", output_size)
    check.positive("canonical_size", canonical_size)
    levels = assign_levels(rois[:, 1:], strides, canonical_size, canonical_level)
    scales = [1.0 / stride for stride in strides]
    pooled: Tensor = torch.ops.instseg.roi_align(
        list(features), rois, levels, scales, height, width, sampling_ratio, aligned
    )
    return pooled


def assign_levels(
    boxes: Tensor,
    strides: Sequence[int],
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """``int64 [K]``: index into ``strides`` for each box (Lin et al., FPN, 2017, equation 1).

    Args:
        boxes: ``[K, 4]``.
        strides: consecutive powers of two.
        canonical_size: see `multiscale_roi_align`.
        canonical_level: likewise.
    """
    first = strides[0].bit_length() - 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # The epsilon keeps exact powers of two on their level.
    level = torch.floor(canonical_level + torch.log2(area.sqrt() / canonical_size) + 1e-6)
    # A box without area has the logarithm -inf or NaN: it belongs to the finest level.
    return (
        level.nan_to_num(first, first, first).clamp(first, first + len(strides) - 1).long() - first
    )


class RoIAlign(nn.Module):
    """`roi_align` as a module; the arguments are those of the function."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, boxes: Tensor | list[Tensor]) -> Tensor:
        """See `roi_align`."""
        return roi_align(
            input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


class MultiscaleRoIAlign(nn.Module):
    """`multiscale_roi_align` as a module.

    Args:
        strides: of the levels pooled from; levels beyond them in the features are not used.
        output_size: see the function.
        sampling_ratio: see the function.
        aligned: likewise.
        canonical_size: likewise.
        canonical_level: likewise.

    Raises:
        ValueError: strides that are not consecutive powers of two.
    """

    def __init__(
        self,
        strides: Sequence[int],
        output_size: int | tuple[int, int],
        *,
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        check.strides(strides)
        self.strides = list(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Sequence[Tensor], boxes: Tensor | list[Tensor]) -> Tensor:
        """See `multiscale_roi_align`."""
        return multiscale_roi_align(
            features[: len(self.strides)],
            boxes,
            self.output_size,
            self.strides,
            self.sampling_ratio,
            self.aligned,
            self.canonical_size,
            self.canonical_level,
        )


def boxes_to_rois(boxes: list[Tensor]) -> Tensor:
    """Stack per-image boxes ``[K_b, 4]`` into rows (batch index, x1, y1, x2, y2) ``[K, 5]``."""
    index = torch.cat([b.new_full((len(b), 1), float(i)) for i, b in enumerate(boxes)])
    return torch.cat([index, torch.cat(boxes)], dim=1)


# --- the op as the dispatcher, autograd and torch.compile see it ---------------------------------


@torch.library.custom_op("instseg::roi_align", mutates_args=())
def _roi_align(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    check.roi_values(rois, features[0].shape[0])
    run = backend.kernel("roi_align", rois.device)
    pooled: Tensor = run(features, rois, levels, scales, (height, width), sampling_ratio, aligned)
    return pooled


@torch.library.custom_op("instseg::roi_align_backward", mutates_args=())
def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    batch: int,
    sizes: list[int],
    channels_last: bool,
) -> list[Tensor]:
    run = backend.kernel("roi_align_backward", rois.device)
    pairs = list(zip(sizes[0::2], sizes[1::2], strict=True))
    grads: list[Tensor]
    grads = run(grad, rois, levels, scales, sampling_ratio, aligned, batch, pairs, channels_last)
    return grads


@_roi_align.register_fake
def _roi_align_fake(features, rois, levels, scales, height, width, sampling_ratio, aligned):  # type: ignore[no-untyped-def]
    shape = (rois.shape[0], features[0].shape[1], height, width)
    return (
        features[0].new_empty(shape).to(memory_format=memory_format(is_channels_last(features[0])))
    )


@_roi_align_backward.register_fake
def _roi_align_backward_fake(  # type: ignore[no-untyped-def]
    grad, rois, levels, scales, sampling_ratio, aligned, batch, sizes, channels_last
):
    layout = memory_format(channels_last)
    pairs = zip(sizes[0::2], sizes[1::2], strict=True)
    return [grad.new_empty((batch, grad.shape[1], h, w)).to(memory_format=layout) for h, w in pairs]


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    features, rois, levels, ctx.scales, _, _, ctx.sampling_ratio, ctx.aligned = inputs
    ctx.save_for_backward(rois, levels)
    ctx.batch = features[0].shape[0]
    ctx.sizes = [side for f in features for side in f.shape[2:]]
    ctx.channels_last = is_channels_last(features[0])


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    rois, levels = ctx.saved_tensors
    grads = torch.ops.instseg.roi_align_backward(
        grad,
        rois,
        levels,
        ctx.scales,
        ctx.sampling_ratio,
        ctx.aligned,
        ctx.batch,
        ctx.sizes,
        ctx.channels_last,
    )
    return grads, None, None, None, None, None, None, None


_roi_align.register_autograd(_backward, setup_context=_setup_context)
