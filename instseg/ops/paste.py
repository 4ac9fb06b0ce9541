"""Predicted RoI masks to pixels of the image: pasted, or thresholded and run-length encoded."""

from __future__ import annotations

import torch
from torch import Tensor

from instseg.ops import backend, check
from instseg.ops._torch import paste
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE


def paste_masks(probs: Tensor, boxes: Tensor, image_size: Size, *, aligned: bool = True) -> Tensor:
    """Spread each mask over its box.

    With ``aligned`` the value of a pixel is the bilinear sample at its centre (mask pixels are
    cells of a regular grid over the box; outside the mask is 0). Without, torchvision's older rule:
    the mask is padded by one pixel and resized to a box of whole pixels.

    Values are computed in float32 (float64 for float64 masks), on all devices with the same
    rounding. They carry no gradient.

    Args:
        probs: ``[N, M, M]`` of a floating dtype.
        boxes: ``[N, 4]`` x1 y1 x2 y2 of a floating dtype; one with no length is empty, or with
            torchvision's rule a pixel wide.
        image_size: (height, width).
        aligned: which of the two rules.

    Returns:
        ``[N, height, width]`` in the dtype of ``probs``. This is N images: use `masks_to_rle` where
        that is too much.

    Raises:
        ValueError: a wrong shape or size, tensors on two devices, or boxes that are not finite.
        TypeError: a wrong dtype.
    """
    height, width = _check(probs, boxes, image_size)
    pasted: Tensor = torch.ops.instseg.paste_masks(
        probs.detach(), boxes.detach(), height, width, aligned
    )
    return pasted


def masks_to_rle(
    probs: Tensor,
    boxes: Tensor,
    image_size: Size,
    *,
    threshold: float = 0.5,
    aligned: bool = True,
) -> list[RLE]:
    """Paste, keep probabilities above ``threshold`` and encode, without an image-size array.

    The codes are, byte for byte, what pycocotools makes of the float32 `paste_masks` above
    ``threshold``. They are made on the CPU, from at most the pixels of each box.

    Args:
        probs: ``[N, M, M]`` of a floating dtype, float64 being rounded to float32.
        boxes: ``[N, 4]`` likewise.
        image_size: (height, width), less than 2^32 pixels.
        threshold: in [0, 1].
        aligned: see `paste_masks`.

    Returns:
        N codes at ``image_size``.

    Raises:
        ValueError: as in `paste_masks`, a threshold outside [0, 1], or an image too large for
            COCO's code.
        TypeError: a wrong dtype.
    """
    height, width = _check(probs, boxes, image_size)
    if height * width >= 1 << 32:
        raise ValueError(f"image_size must be less than 2^32 pixels, got {(height, width)}")
    check.fraction("threshold", threshold)
    run = backend.kernel("masks_to_rle", torch.device("cpu"))  # codes are strings: no work for GPUs
    probs, boxes = (v.detach().to("cpu", torch.float32).contiguous() for v in (probs, boxes))
    check.finite("boxes", boxes)
    counts: list[bytes] = run(probs, boxes, (height, width), float(threshold), aligned)
    return [{"size": [height, width], "counts": c} for c in counts]


def _check(probs: Tensor, boxes: Tensor, image_size: Size) -> Size:
    if probs.ndim != 3 or probs.shape[1] != probs.shape[2] or probs.shape[1] == 0:
        raise ValueError(f"probs must be [N, M, M] with M at least 1, got {list(probs.shape)}")
    check.floating("probs", probs)
    check.boxes("boxes", boxes)
    if boxes.shape[0] != probs.shape[0]:
        raise ValueError(f"boxes must be [{probs.shape[0]}, 4], got {list(boxes.shape)}")
    check.same_device("boxes", boxes, "probs", probs)
    return check.output_size("image_size", image_size)


@torch.library.custom_op("instseg::paste_masks", mutates_args=())
def _paste_masks(probs: Tensor, boxes: Tensor, height: int, width: int, aligned: bool) -> Tensor:
    boxes = boxes.cpu()
    check.finite("boxes", boxes)
    return paste.paste_masks(probs, boxes, (height, width), aligned)


@_paste_masks.register_fake
def _paste_masks_fake(probs, boxes, height, width, aligned):  # type: ignore[no-untyped-def]
    return probs.new_empty((probs.shape[0], height, width))
