"""What a semantic network learns from, painted from the objects of an image.

Made of the objects after all transforms, so that one set of transforms serves detectors and
semantic networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from instseg.data.mask_columns import decode_columns
from instseg.data.weight_map import UNetWeights, components
from instseg.ops import instance_rles, rle
from instseg.ops.distance_transform import distance_transform
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances
from instseg.structures.semantic_map import IGNORE, SemanticMap

Kind = Literal["multiclass", "multilabel", "border"]
INSIDE, BORDER = 1, 2
"""The classes of an object's pixels in a map of kind "border"."""

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int32]


class SemanticTarget:
    """Makes the `SemanticMap` of the objects of an image.

    Kinds:

    - "multiclass": classes that exclude each other, 0 the background and k + 1 the objects of
      label k. Without ``background`` class k is label k, and what no object covers is `IGNORE`.
    - "multilabel": one map for each label, 1 where an object has it; objects of different labels
      may overlap.
    - "border": for data sets of one label: 0 background, 1 inside, 2 border of an object. The
      border is every pixel of an object that has, within ``border_width`` pixels between centres,
      a pixel which is not of that object, be it background or another object. So objects that touch
      have twice the width between their insides. Where the image ends is no border. Of an object
      that would be all border the innermost pixels are inside, so that none gets lost.

    Where objects exclude each other the smaller one wins the pixels that two claim, and of equally
    large ones the later. Crowd regions are `IGNORE` where no object is (in multi-label maps, of the
    label alone that the crowd has).

    Args:
        num_classes: labels in the data set.
        kind: of map, see above.
        background: whether multi-class maps have a background class.
        border_width: in pixels, >= 1; of kind "border".
        separate_touching: turn into background, between two objects that touch (also at a corner),
            a line one pixel wide of the larger one, as U-Net was trained (its section 3): without
            it the objects flow together. In multi-label maps, objects of the same label.
        weights: makes the map's `weights`; None leaves them out. Multi-label maps count as two
            classes, pixels without and with a label.
        cells: what ``weights`` keeps apart: "instances", or "components", the 4-connected regions
            of a label, for data sets whose objects are whole classes (class maps).
        cell_labels: labels whose objects are cells; None for all. A membrane's is not one.

    Raises:
        ValueError: an argument is out of range, or contradicts another one.
    """

    def __init__(
        self,
        num_classes: int,
        kind: Kind = "multiclass",
        *,
        background: bool = True,
        border_width: int = 2,
        separate_touching: bool = False,
        weights: UNetWeights | None = None,
        cells: Literal["instances", "components"] = "instances",
        cell_labels: Sequence[int] | None = None,
    ) -> None:
        if kind not in ("multiclass", "multilabel", "border"):
            raise ValueError(f"kind must be multiclass, multilabel or border, got {kind!r}")
        if cells not in ("instances", "components"):
            raise ValueError(f"cells must be instances or components, got {cells!r}")
        if not 1 <= num_classes < IGNORE:
            raise ValueError(f"num_classes must be in 1..{IGNORE - 1}, got {num_classes}")
        if kind == "border" and num_classes != 1:
            raise ValueError(
                f"kind 'border' is for data sets of one label, got num_classes={num_classes}; "
                "merge the labels, or use 'multiclass'"
            )
        if border_width < 1:
            raise ValueError(f"border_width must be at least 1 pixel, got {border_width}")
        if not background and (kind != "multiclass" or separate_touching):
            raise ValueError(
                "background=False is for kind 'multiclass' without separate_touching, "
                f"got kind={kind!r} and separate_touching={separate_touching}"
            )
        labels = range(num_classes)
        self.cell_labels = tuple(labels if cell_labels is None else cell_labels)
        if strange := set(self.cell_labels) - set(labels):
            raise ValueError(f"cell_labels must be in 0..{num_classes - 1}, got {min(strange)}")
        self.num_classes, self.kind, self.background = num_classes, kind, background
        self.border_width, self.separate_touching = border_width, separate_touching
        self.weights, self.cells = weights, cells

    @property
    def num_outputs(self) -> int:
        """Channels of the network that learns these maps."""
        if self.kind == "border":
            return 3
        return self.num_classes + (self.kind == "multiclass" and self.background)

    def __call__(self, instances: Instances) -> SemanticMap:
        """Paint the objects.

        Args:
            instances: with masks, and labels below ``num_classes``.

        Returns:
            Labels ``uint8 [H, W]``, or ``[num_classes, H, W]`` of kind "multilabel".

        Raises:
            ValueError: there are no masks, or a label is out of range.
        """
        self._check(instances)
        objects, crowds = instances[~instances.crowd], instances[instances.crowd]
        if self.kind == "multilabel":
            maps = np.stack([self._channel(objects, crowds, k) for k in range(self.num_classes)])
            weights = None
            if self.weights is not None:
                painted = _paint(objects, separate_touching=self.separate_touching)
                weights = self.weights(_has_any(maps), self._cell_numbers(*painted))
        else:
            numbers, owners = _paint(objects, separate_touching=self.separate_touching)
            maps = self._exclusive(numbers, owners)
            maps[(numbers == 0) & _cover(crowds)] = IGNORE
            weights = None
            if self.weights is not None:
                weights = self.weights(maps, self._cell_numbers(numbers, owners))
        return SemanticMap(
            torch.from_numpy(maps), weights=None if weights is None else torch.from_numpy(weights)
        )

    def _check(self, instances: Instances) -> None:
        if instances.masks is None:
            raise ValueError("semantic targets are painted from masks, but these objects have none")
        labels = instances.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must be in 0..{self.num_classes - 1}, got {labels.unique().tolist()}; "
                "is num_classes that of the data set?"
            )

    def _channel(self, objects: Instances, crowds: Instances, label: int) -> Pixels:
        alike, crowds = objects[objects.labels == label], crowds[crowds.labels == label]
        numbers, _ = _paint(alike, separate_touching=self.separate_touching)
        channel = (numbers > 0).astype(np.uint8)
        channel[(numbers == 0) & _cover(crowds)] = IGNORE
        return channel

    def _exclusive(self, numbers: Numbers, owners: Numbers) -> Pixels:
        if self.kind == "border":
            return inside_and_border(numbers, self.border_width)
        classes = owners + int(self.background)
        if not self.background:
            classes[0] = IGNORE
        return classes.astype(np.uint8)[numbers]

    def _cell_numbers(self, numbers: Numbers, owners: Numbers) -> Numbers:
        if self.cells == "components":
            return components(owners[numbers], self.cell_labels)
        kept = np.where(np.isin(owners, self.cell_labels), np.arange(len(owners)), 0)
        return kept.astype(np.int32)[numbers]


def inside_and_border(numbers: Numbers, border_width: int) -> Pixels:
    """The three-class map of objects: see `SemanticTarget`, kind "border".

    Args:
        numbers: ``[H, W]``, 0 for the background, and another number in each object.
        border_width: in pixels, >= 1.

    Returns:
        ``uint8 [H, W]``: 0, `INSIDE` or `BORDER`.
    """
    offset = np.arange(-border_width, border_width + 1)
    disc = (offset[:, None] ** 2 + offset**2 <= border_width**2).astype(np.uint8)
    values = numbers.astype(np.float32)  # OpenCV's morphology has no int32
    is_border = (cv2.dilate(values, disc) != values) | (cv2.erode(values, disc) != values)
    classes = np.where(is_border, BORDER, INSIDE).astype(np.uint8)
    classes[numbers == 0] = 0
    lost = set(np.unique(numbers)) - set(np.unique(numbers[classes == INSIDE])) - {0}
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if number in lost:
            around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
            mask = (numbers[around] == number).astype(np.uint8)
            depth = distance_transform(mask)
            classes[around][depth == depth.max()] = INSIDE
    return classes


def _paint(objects: Instances, *, separate_touching: bool) -> tuple[Numbers, Numbers]:
    """Objects painted one over the other, the largest first.

    Returns:
        ``int32 [H, W]``: the number of the object at each pixel, from 1 for the largest; 0 none.
        ``int32 [N + 1]``: the label of each number, -1 of 0.
    """
    codes = instance_rles(objects)
    order = np.argsort([-rle.area(code) for code in codes], kind="stable")
    numbers = np.zeros(objects.image_size, dtype=np.int32)
    for number, i in enumerate(order.tolist(), start=1):
        x1, y1, x2, y2 = (int(edge) for edge in rle.to_box(codes[i]))
        numbers[y1:y2, x1:x2][decode_columns(codes[i], x1, x2)[y1:y2]] = number
    if separate_touching:
        # A neighbour of a greater number is of a smaller object.
        values = numbers.astype(np.float32)
        beside_smaller = cv2.dilate(values, np.ones((3, 3), np.uint8)) > values
        numbers[beside_smaller] = 0
    owners = np.concatenate([[-1], objects.labels.numpy()[order]]).astype(np.int32)
    return numbers, owners


def _cover(crowds: Instances) -> npt.NDArray[np.bool_]:
    """``[H, W]``: whether any of the regions covers a pixel."""
    size: Size = crowds.image_size
    if not len(crowds):
        return np.zeros(size, dtype=bool)
    return rle.decode(rle.merge(instance_rles(crowds))) > 0


def _has_any(maps: Pixels) -> Pixels:
    """Two classes of multi-label maps: 1 where any label is, `IGNORE` where one is unknown, 0."""
    known = (maps == 1).any(axis=0)
    unknown = (maps == IGNORE).any(axis=0)
    return np.where(known, 1, np.where(unknown, IGNORE, 0)).astype(np.uint8)
