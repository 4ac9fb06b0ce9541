"""Transforms that draw further images of the data set, and how targets become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from instseg.data.transforms.moves import Pair
from instseg.ops import instance_rles, rle
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.instances import Instances
from instseg.structures.masks import Polygon, Segmentation, SparseMasks


class MixTransform(ABC):
    """A transform of one sample that needs further images of the data set, its partners.

    The data set draws for each sample, with probability `p`, `num_partners` of its images, itself
    included, and reads no partner where the draw is against mixing.

    Attributes:
        p: probability that a sample is mixed at all.
        num_partners: how many further images it takes.
        needs_masks: whether targets without masks are of no use to it.
    """

    p: float
    num_partners: int = 1
    needs_masks: bool = False

    @abstractmethod
    def __call__(self, base: Pair, partners: Sequence[Pair]) -> Pair:
        """Mix ``base`` with `num_partners` partners; draws from torch's global generator."""


def concatenate(parts: Sequence[Instances]) -> Instances:
    """The objects of several targets of one image size, in order, as ground truth of one image.

    Masks become polygons and run lengths at the image's size, whatever maps they came with.

    Raises:
        ValueError: some parts have masks and others none, or their image sizes differ.
    """
    size = parts[0].image_size
    if any(part.image_size != size for part in parts):
        raise ValueError(f"targets must have one image size, got {[p.image_size for p in parts]}")
    without_masks = [part.masks is None for part in parts]
    if any(without_masks) and not all(without_masks):
        raise ValueError("either all targets have masks or none has, got some of both")
    masks = None
    if not any(without_masks):
        masks = SparseMasks([s for part in parts for s in _settled(part)], size, size)
    return Instances(
        image_size=size,
        boxes=torch.cat([part.boxes for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        masks=masks,
        is_crowd=torch.cat([part.crowd for part in parts]),
    )


def bounded(target: Instances) -> Instances:
    """``target`` with masks that end where its image does.

    On a canvas that holds several images, what an annotator drew beyond the border of one would
    lie on its neighbour: such polygons become run lengths, which cannot reach further.
    """
    if target.masks is None:
        return target
    size = target.image_size
    segmentations: list[Segmentation] = [
        s if isinstance(s, dict) or _is_inside(s, size) else rle.from_polygons(s, size)
        for s in _settled(target)
    ]
    return replace(target, masks=SparseMasks(segmentations, size, size))


def _settled(target: Instances) -> list[Segmentation]:
    """The masks in coordinates of the present image."""
    masks, size = target.masks, target.image_size
    if not isinstance(masks, SparseMasks):
        return [*instance_rles(target)]
    if masks.transform == AxisTransform() and masks.source_size == size:
        return masks.segmentations
    move = masks.transform
    scale = np.array([move.scale_x, move.scale_y])
    shift = np.array([move.shift_x, move.shift_y])
    return [
        instance_rles(target[[i]])[0] if isinstance(s, dict) else [p * scale + shift for p in s]
        for i, s in enumerate(masks.segmentations)
    ]


def _is_inside(polygons: list[Polygon], size: Size) -> bool:
    limit = (size[1], size[0])
    return all((p >= 0).all() and (p <= limit).all() for p in polygons)
