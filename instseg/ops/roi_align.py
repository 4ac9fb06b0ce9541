"""RoIAlign (He et al., Mask R-CNN, 2017, section 3)."""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
) -> Tensor:
    """Average of bilinear samples in each bin of each box.

    Args:
        input: feature map ``[B, C, H, W]``.
        boxes: ``[K, 5]`` rows (batch index, x1, y1, x2, y2), or a list of B tensors ``[K_b, 4]``,
            in image coordinates.
        output_size: (height, width) of the pooled map, or one number for both.
        spatial_scale: feature pixels per image pixel, e.g. 1/4 for a stride of 4.
        sampling_ratio: samples along each axis of a bin; <= 0 means ceil(bin size).
        aligned: True shifts by half a pixel, so that continuous image coordinates are honoured
            (detectron2's convention). False is the convention of torchvision's checkpoints. Unlike
            torchvision's function, the default is True.

    Returns:
        ``[K, C, output_height, output_width]`` in the dtype of ``input``.

    Raises:
        ValueError: the shape of ``input`` or ``boxes`` is not one of those above.
    """
    if input.ndim != 4:
        raise ValueError(f"input must be [B, C, H, W], got {list(input.shape)}")
    if isinstance(boxes, Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes must be [K, 5] or a list of [K, 4], got {list(boxes.shape)}")
    elif len(boxes) != input.shape[0] or any(b.ndim != 2 or b.shape[1] != 4 for b in boxes):
        shapes = [list(b.shape) for b in boxes]
        raise ValueError(f"boxes must be {input.shape[0]} tensors [K, 4], got {shapes}")
    pooled: Tensor = torchvision.ops.roi_align(
        input, boxes, output_size, spatial_scale, sampling_ratio, aligned
    )
    return pooled


def boxes_to_rois(boxes: list[Tensor]) -> Tensor:
    """Stack per-image boxes ``[K_b, 4]`` into rows (batch index, x1, y1, x2, y2) ``[K, 5]``."""
    index = torch.cat([b.new_full((len(b), 1), float(i)) for i, b in enumerate(boxes)])
    return torch.cat([index, torch.cat(boxes)], dim=1)
