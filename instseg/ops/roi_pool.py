"""RoI max pooling (Girshick, Fast R-CNN, 2015, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instseg.ops import backend, check
from instseg.ops.layout import is_channels_last, memory_format


def roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The largest value in each bin of each box, whose borders are rounded to whole pixels.

    The rounding is torchvision's: with x1 and x2 rounded (halves away from zero), the box is the
    pixels x1 to x2, both included, at least one; bin j of w takes the pixels from
    ``x1 + floor(j (x2 - x1 + 1) / w)`` up to ``x1 + ceil((j + 1)(x2 - x1 + 1) / w)``, excluded, as
    far as they are in the map. Likewise for y. A bin without pixels is 0. The gradient goes to
    ``input`` alone, for each bin to the first of its largest pixels, and does not depend on the
    number of threads, nor on a GPU on chance. `roi_align` is the better op for new models.

    Args:
        input: feature map ``[B, C, H, W]``, float16, bfloat16, float32 or float64.
        boxes: ``[K, 5]`` rows (batch index, x1, y1, x2, y2), or a list of B tensors ``[K_b, 4]``,
            in image coordinates.
        output_size: (height, width) of the pooled map, or one number for both.
        spatial_scale: feature pixels per image pixel, e.g. 1/16 for a stride of 16.

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
    pooled: Tensor
    pooled, _ = torch.ops.instseg.roi_pool(input, rois, spatial_scale, height, width)
    return pooled


class RoIPool(nn.Module):
    """`roi_pool` as a module; the arguments are those of the function."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, boxes: Tensor | list[Tensor]) -> Tensor:
        """See `roi_pool`."""
        return roi_pool(input, boxes, self.output_size, self.spatial_scale)


# --- the op as the dispatcher, autograd and torch.compile see it ---------------------------------


@torch.library.custom_op("instseg::roi_pool", mutates_args=())
def _roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """The pooled map, and ``int64`` of its shape: y * W + x of each maximum, -1 of none."""
    check.roi_values(rois, input.shape[0])
    run = backend.kernel("roi_pool", rois.device)
    pooled, argmax = run(input, rois, spatial_scale, (height, width))
    layout = memory_format(is_channels_last(input))
    return pooled.contiguous(memory_format=layout), argmax.contiguous(memory_format=layout)


@torch.library.custom_op("instseg::roi_pool_backward", mutates_args=())
def _roi_pool_backward(
    grad: Tensor,
    argmax: Tensor,
    rois: Tensor,
    batch: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    run = backend.kernel("roi_pool_backward", rois.device)
    slope: Tensor = run(grad, argmax, rois, batch, (height, width))
    return slope.contiguous(memory_format=memory_format(channels_last))


@_roi_pool.register_fake
def _roi_pool_fake(input, rois, spatial_scale, height, width):  # type: ignore[no-untyped-def]
    shape = (rois.shape[0], input.shape[1], height, width)
    pooled = input.new_empty(shape).to(memory_format=memory_format(is_channels_last(input)))
    return pooled, torch.empty_like(pooled, dtype=torch.int64)


@_roi_pool_backward.register_fake
def _roi_pool_backward_fake(grad, argmax, rois, batch, height, width, channels_last):  # type: ignore[no-untyped-def]
    slope = grad.new_empty((batch, grad.shape[1], height, width))
    return slope.to(memory_format=memory_format(channels_last))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    input, rois, _, _, _ = inputs
    ctx.save_for_backward(output[1], rois)
    ctx.batch, _, ctx.height, ctx.width = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    argmax, rois = ctx.saved_tensors
    slope = torch.ops.instseg.roi_pool_backward(
        grad, argmax, rois, ctx.batch, ctx.height, ctx.width, ctx.channels_last
    )
    return slope, None, None, None, None


_roi_pool.register_autograd(_backward, setup_context=_setup_context)
