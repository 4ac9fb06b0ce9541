"""Position-sensitive RoI pooling: every bin reads channels of its own (Dai et al., R-FCN, 2016).

Of the input's C * h * w channels, bin (i, j) of output channel c reads channel ``c*h*w + i*w + j``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from instseg.ops import backend, check
from instseg.ops.layout import is_channels_last, memory_format


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Average of bilinear samples in each bin of each box, from the channels of that bin.

    Samples lie as in `roi_align` with ``aligned=True``: box borders are shifted by half a pixel,
    and samples more than one pixel outside the map count as 0. Sums are float32 (float64 for
    float64 input). The gradient goes to ``input`` alone; it does not depend on the number of
    threads, nor on a GPU on chance. Where torchvision divides by no samples (adaptive sampling of
    boxes without area) and gives NaN, this gives 0.

    Source: Dai et al., R-FCN, 2016, section 2 (the channels); Li et al., Light-Head R-CNN, 2017
    (with RoIAlign's samples).

    Args:
        input: feature map ``[B, C * output_height * output_width, H, W]``, float16, bfloat16,
            float32 or float64.
        boxes: ``[K, 5]`` rows (batch index, x1, y1, x2, y2), or a list of B tensors ``[K_b, 4]``,
            in image coordinates.
        output_size: (height, width) of the pooled map, or one number for both.
        spatial_scale: feature pixels per image pixel, e.g. 1/16 for a stride of 16.
        sampling_ratio: samples along each axis of a bin; <= 0 means ceil(bin size).

    Returns:
        ``[K, C, output_height, output_width]`` in the dtype and memory format of ``input``.

    Raises:
        ValueError: a wrong shape or size, channels that do not fill whole bins, boxes that are not
            finite or a batch index out of range. On a GPU the last two are looked for only under
            ``INSTSEG_DEBUG=1``: without, such a box gives zeros.
        TypeError: a wrong dtype.
    """
    rois, height, width = _checked(input, boxes, output_size, spatial_scale)
    pooled: Tensor = torch.ops.instseg.ps_roi_align(
        input, rois, spatial_scale, height, width, sampling_ratio
    )
    return pooled


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """Mean of the pixels in each bin of each box rounded to pixels, from the bin's own channels.

    The rounding is torchvision's: with x1 and x2 rounded (halves away from zero), the box is the
    pixels from x1 up to x2, excluded, at least one; bin j of w takes the pixels from
    ``x1 + floor(j (x2 - x1) / w)`` up to ``x1 + ceil((j + 1)(x2 - x1) / w)``, excluded. Likewise
    for y. Pixels outside the map are left out, and so are, as in torchvision, those in its last row
    and column. A bin without pixels is 0. The gradient goes to ``input`` alone and is that of this
    function (torchvision's spreads over the last row and column too, which its forward does not
    read); it does not depend on the number of threads, nor on a GPU on chance.

    Source: Dai et al., R-FCN, 2016, section 2, equation 1.

    Args:
        input: see `ps_roi_align`.
        boxes: likewise.
        output_size: likewise.
        spatial_scale: likewise.

    Returns:
        ``[K, C, output_height, output_width]`` in the dtype and memory format of ``input``.

    Raises:
        ValueError: as in `ps_roi_align`.
        TypeError: likewise.
    """
    rois, height, width = _checked(input, boxes, output_size, spatial_scale)
    pooled: Tensor = torch.ops.instseg.ps_roi_pool(input, rois, spatial_scale, height, width)
    return pooled


class PSRoIAlign(nn.Module):
    """`ps_roi_align` as a module; the arguments are those of the function."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, boxes: Tensor | list[Tensor]) -> Tensor:
        """See `ps_roi_align`."""
        return ps_roi_align(input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio)


class PSRoIPool(nn.Module):
    """`ps_roi_pool` as a module; the arguments are those of the function."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Tensor | list[Tensor]) -> Tensor:
        """See `ps_roi_pool`."""
        return ps_roi_pool(input, boxes, self.output_size, self.spatial_scale)


def _checked(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float,
) -> tuple[Tensor, int, int]:
    """RoIs ``[K, 5]`` and the output's height and width."""
    check.feature_map("input", input)
    rois = check.rois("boxes", boxes, input)
    height, width = check.output_size("output_size", output_size)
    check.positive("spatial_scale", spatial_scale)
    if input.shape[1] % (height * width):
        raise ValueError(
            f"input must have a multiple of {height} * {width} channels, got {list(input.shape)}"
        )
    return rois, height, width


# --- the ops as the dispatcher, autograd and torch.compile see them ------------------------------


@torch.library.custom_op("instseg::ps_roi_align", mutates_args=())
def _ps_roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
) -> Tensor:
    check.roi_values(rois, input.shape[0])
    run = backend.kernel("ps_roi_align", rois.device)
    pooled: Tensor = run(input, rois, spatial_scale, (height, width), sampling_ratio)
    return pooled.contiguous(memory_format=memory_format(is_channels_last(input)))


@torch.library.custom_op("instseg::ps_roi_align_backward", mutates_args=())
def _ps_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    batch: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    run = backend.kernel("ps_roi_align_backward", rois.device)
    slope: Tensor = run(grad, rois, spatial_scale, sampling_ratio, batch, (height, width))
    return slope.contiguous(memory_format=memory_format(channels_last))


@torch.library.custom_op("instseg::ps_roi_pool", mutates_args=())
def _ps_roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int
) -> Tensor:
    check.roi_values(rois, input.shape[0])
    run = backend.kernel("ps_roi_pool", rois.device)
    pooled: Tensor = run(input, rois, spatial_scale, (height, width))
    return pooled.contiguous(memory_format=memory_format(is_channels_last(input)))


@torch.library.custom_op("instseg::ps_roi_pool_backward", mutates_args=())
def _ps_roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    run = backend.kernel("ps_roi_pool_backward", rois.device)
    slope: Tensor = run(grad, rois, spatial_scale, batch, (height, width))
    return slope.contiguous(memory_format=memory_format(channels_last))


@_ps_roi_align.register_fake
def _ps_roi_align_fake(input, rois, spatial_scale, height, width, sampling_ratio):  # type: ignore[no-untyped-def]
    return _empty_pooled(input, rois, height, width)


@_ps_roi_pool.register_fake
def _ps_roi_pool_fake(input, rois, spatial_scale, height, width):  # type: ignore[no-untyped-def]
    return _empty_pooled(input, rois, height, width)


@_ps_roi_align_backward.register_fake
def _ps_roi_align_backward_fake(  # type: ignore[no-untyped-def]
    grad, rois, spatial_scale, sampling_ratio, batch, height, width, channels_last
):
    return _empty_input(grad, batch, height, width, channels_last)


@_ps_roi_pool_backward.register_fake
def _ps_roi_pool_backward_fake(  # type: ignore[no-untyped-def]
    grad, rois, spatial_scale, batch, height, width, channels_last
):
    return _empty_input(grad, batch, height, width, channels_last)


def _empty_pooled(input: Tensor, rois: Tensor, height: int, width: int) -> Tensor:
    shape = (rois.shape[0], input.shape[1] // (height * width), height, width)
    return input.new_empty(shape).to(memory_format=memory_format(is_channels_last(input)))


def _empty_input(grad: Tensor, batch: int, height: int, width: int, channels_last: bool) -> Tensor:
    channels = grad.shape[1] * grad.shape[2] * grad.shape[3]
    slope = grad.new_empty((batch, channels, height, width))
    return slope.to(memory_format=memory_format(channels_last))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    input, rois, ctx.spatial_scale, _, _, *ctx.sampling_ratio = inputs
    ctx.save_for_backward(rois)
    ctx.batch, _, ctx.height, ctx.width = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward_align(ctx, grad):  # type: ignore[no-untyped-def]
    return _backward(torch.ops.instseg.ps_roi_align_backward, ctx, grad)


def _backward_pool(ctx, grad):  # type: ignore[no-untyped-def]
    return _backward(torch.ops.instseg.ps_roi_pool_backward, ctx, grad)


def _backward(op: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rois,) = ctx.saved_tensors
    plane = (ctx.batch, ctx.height, ctx.width, ctx.channels_last)
    slope = op(grad, rois, ctx.spatial_scale, *ctx.sampling_ratio, *plane)
    return slope, None, None, None, None, *(None for _ in ctx.sampling_ratio)


_ps_roi_align.register_autograd(_backward_align, setup_context=_setup_context)
_ps_roi_pool.register_autograd(_backward_pool, setup_context=_setup_context)
