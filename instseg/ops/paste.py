"""Predicted RoI masks to pixels of the image: pasted, thresholded, run-length encoded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE


def paste_masks(probs: Tensor, boxes: Tensor, image_size: Size, *, aligned: bool = True) -> Tensor:
    """Spread each mask over its box.

    With ``aligned`` the value of a pixel is the bilinear sample at its centre (mask pixels are
    cells of a regular grid over the box; outside the mask is 0). Without, torchvision's older rule:
    the mask is padded by one pixel and resized to a box of whole pixels.

    Args:
        probs: ``float [N, M, M]``.
        boxes: ``float [N, 4]``.
        image_size: (height, width).
        aligned: which of the two rules.

    Returns:
        ``float [N, height, width]``. This is N images: use `masks_to_rle` where that is too much.
    """
    canvas = probs.new_zeros((len(probs), *image_size))
    for page, mask, box in zip(canvas, probs, boxes.tolist(), strict=True):
        patch, top, left = _paste_patch(mask, box, image_size, aligned)
        page[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return canvas


def masks_to_rle(
    probs: Tensor,
    boxes: Tensor,
    image_size: Size,
    *,
    threshold: float = 0.5,
    aligned: bool = True,
) -> list[RLE]:
    """Paste, keep probabilities above ``threshold`` and encode, one mask at a time.

    Args:
        probs: ``float [N, M, M]``.
        boxes: ``float [N, 4]``.
        image_size: (height, width).
        threshold: in [0, 1].
        aligned: see `paste_masks`.

    Returns:
        N codes at ``image_size``.
    """
    probs, boxes = probs.detach().float().cpu(), boxes.detach().float().cpu()
    codes = []
    for mask, box in zip(probs, boxes.tolist(), strict=True):
        patch, top, left = _paste_patch(mask, box, image_size, aligned)
        canvas = torch.zeros(image_size, dtype=torch.uint8)
        canvas[top : top + patch.shape[0], left : left + patch.shape[1]] = patch > threshold
        codes.append(rle.encode(canvas.numpy()))
    return codes


def _paste_patch(
    mask: Tensor, box: list[float], image_size: Size, aligned: bool
) -> tuple[Tensor, int, int]:
    """The part of the image that the mask reaches, as (values, top, left)."""
    return (_aligned_patch if aligned else _whole_pixel_patch)(mask, box, image_size)


def _aligned_patch(mask: Tensor, box: list[float], image_size: Size) -> tuple[Tensor, int, int]:
    x1, y1, x2, y2 = box
    left, right = max(math.floor(x1), 0), min(math.ceil(x2), image_size[1])
    top, bottom = max(math.floor(y1), 0), min(math.ceil(y2), image_size[0])
    if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
        return mask.new_zeros((0, 0)), 0, 0
    xs = torch.arange(left, right, device=mask.device, dtype=mask.dtype) + 0.5
    ys = torch.arange(top, bottom, device=mask.device, dtype=mask.dtype) + 0.5
    grid_x = ((xs - x1) / (x2 - x1) * 2 - 1)[None, :].expand(len(ys), -1)
    grid_y = ((ys - y1) / (y2 - y1) * 2 - 1)[:, None].expand(-1, len(xs))
    grid = torch.stack((grid_x, grid_y), dim=-1)[None]
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0], top, left


def _whole_pixel_patch(mask: Tensor, box: list[float], image_size: Size) -> tuple[Tensor, int, int]:
    padded = F.pad(mask, (1, 1, 1, 1))
    scale = padded.shape[-1] / mask.shape[-1]
    # float32 throughout, as torchvision computes it: the rounding decides which pixels are reached.
    x1, y1, x2, y2 = mask.new_tensor(box).unbind()
    half_w, half_h = (x2 - x1) * 0.5 * scale, (y2 - y1) * 0.5 * scale
    center_x, center_y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
    left, right = int(center_x - half_w), int(center_x + half_w)
    top, bottom = int(center_y - half_h), int(center_y + half_h)
    size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
    patch = F.interpolate(padded[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    skip_x, skip_y = max(-left, 0), max(-top, 0)
    patch = patch[skip_y : image_size[0] - top, skip_x : image_size[1] - left]
    return patch, top + skip_y, left + skip_x
