"""The symmetries of the square: what microscope and aerial images, without an up, can be put to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    check_probability,
    draw_int,
    happens,
    hflip,
)
from instseg.ops import rle
from instseg.structures.geometry import AxisTransform
from instseg.structures.instances import Instances
from instseg.structures.masks import Segmentation, SparseMasks


class RandomVerticalFlip(PairTransform):
    """Mirror top and bottom with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Mirror the pair, or leave it."""
        return vflip(image, target) if happens(self.p) else (image, target)


class RandomRotation90(PairTransform):
    """Turn by 90, 180 or 270 degrees, each as likely, with probability ``p``.

    Height and width change places in quarter turns. The default ``p`` makes all four directions
    equally likely.
    """

    def __init__(self, p: float = 0.75) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Turn the pair, or leave it."""
        if not happens(self.p):
            return image, target
        turns = draw_int(1, 3)
        if turns == 2:
            return hflip(*vflip(image, target))
        swapped = transpose(image, target)
        return vflip(*swapped) if turns == 1 else hflip(*swapped)


def vflip(image: tv_tensors.Image, target: Instances) -> Pair:
    """Mirror top and bottom."""
    size = target.image_size
    mirror = AxisTransform(scale_y=-1.0, shift_y=float(size[0]))
    return tv_tensors.Image(image.flip(1)), target.transformed(mirror, size)


def transpose(image: tv_tensors.Image, target: Instances) -> Pair:
    """Mirror at the main diagonal: rows become columns.

    Raises:
        TypeError: the masks are not `SparseMasks`.
    """
    masks = target.masks
    if not (masks is None or isinstance(masks, SparseMasks)):
        raise TypeError(f"transposing needs SparseMasks or no masks, got {type(masks).__name__}")
    moved = replace(
        target,
        image_size=target.image_size[::-1],
        boxes=target.boxes[:, [1, 0, 3, 2]],
        masks=None if masks is None else _transposed(masks),
    )
    return tv_tensors.Image(torch.transpose(image, 1, 2).contiguous()), moved


def _transposed(masks: SparseMasks) -> SparseMasks:
    # A map of each axis by itself, after which rows and columns are swapped, is the same as rows
    # and columns swapped first and the two axes' maps exchanged.
    t = masks.transform
    segmentations: list[Segmentation] = [
        rle.encode(rle.decode(s).T) if isinstance(s, dict) else [p[:, ::-1] for p in s]
        for s in masks.segmentations
    ]
    return SparseMasks(
        segmentations,
        masks.source_size[::-1],
        masks.size[::-1],
        AxisTransform(t.scale_y, t.shift_y, t.scale_x, t.shift_x),
    )
