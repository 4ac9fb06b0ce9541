"""Transforms that move pixels, and the boxes and masks with them.

Everything is made of three moves, `resize`, `hflip` and `window`: each changes the image and makes
the one matching call of `Instances.transformed`, so that the two cannot drift apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from instseg.ops import box_area
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.instances import Instances

Pair = tuple[tv_tensors.Image, Instances]
"""An image ``uint8 [3, H, W]`` and the objects in it, ``target.image_size == (H, W)``."""


def resize(image: tv_tensors.Image, target: Instances, size: Size) -> Pair:
    """Resample to ``size`` (height, width): bilinear, antialiased where it shrinks."""
    return F.resize(image, list(size), antialias=True), target.resized(size)


def hflip(image: tv_tensors.Image, target: Instances) -> Pair:
    """Mirror left and right."""
    size = target.image_size
    return F.horizontal_flip(image), target.transformed(AxisTransform.hflip(size[1]), size)


def window(
    image: tv_tensors.Image, target: Instances, left: int, top: int, size: Size, fill: int = 0
) -> Pair:
    """Cut a window of ``size`` whose corner is the pixel (``top``, ``left``) of the image.

    What reaches beyond the image at the right and bottom is filled with the value ``fill``.
    """
    height, width = size
    inner_height = min(height, target.image_size[0] - top)
    inner_width = min(width, target.image_size[1] - left)
    image = F.crop(image, top, left, inner_height, inner_width)
    if (inner_height, inner_width) != size:
        image = F.pad(image, [0, 0, width - inner_width, height - inner_height], fill=fill)
    return image, target.transformed(AxisTransform.crop(left, top), size)


class PairTransform(v2.Transform, ABC):
    """A v2 transform of an image and its `Instances`.

    Subclasses override ``forward``, since that of ``v2.Transform`` hands only tensors and PIL
    images on to ``transform()``.
    """

    @abstractmethod
    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Transform the pair; ``target.image_size`` is the image's size before and after."""


class Resize(PairTransform):
    """Resize to exactly ``size`` (height, width); the aspect ratio is not kept."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = _checked_size(size)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Resize the pair."""
        return resize(image, target, self.size)


class ResizeShortestEdge(PairTransform):
    """Resize so that the shorter edge has one of ``sizes`` and the longer at most ``max_size``.

    The rule of Fast R-CNN, with detectron2's rounding: the scale is ``size / shorter edge``, or
    ``max_size / longer edge`` where that is less, and both edges are rounded half up.

    Args:
        sizes: edge length in pixels, or several, of which each sample draws one (multi-scale).
        max_size: cap on the longer edge, in pixels.
    """

    def __init__(self, sizes: Sequence[int] | int, max_size: int) -> None:
        super().__init__()
        self.sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        self.max_size = max_size
        if not self.sizes or min(self.sizes) < 1 or max_size < 1:
            raise ValueError(f"sizes and max_size must be at least 1, got {sizes} and {max_size}")

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Draw a size and resize the pair."""
        size = self.sizes[_draw_int(0, len(self.sizes) - 1)]
        height, width = target.image_size
        scale = min(size / min(height, width), self.max_size / max(height, width))
        return resize(image, target, _scaled((height, width), scale))


class RandomHorizontalFlip(PairTransform):
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.p = p

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Mirror the pair, or leave it."""
        return hflip(image, target) if _draw_float(0, 1) < self.p else (image, target)


class LargeScaleJitter(PairTransform):
    """Resize by a random factor, then crop at random or pad to ``size``.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation" (CVPR 2021), section 3. The factor is relative to the largest size at which the
    whole image fits in ``size``; padding is at the right and bottom.

    Args:
        size: (height, width) of every result.
        min_scale: least factor, > 0.
        max_scale: greatest factor.
        fill: value of the padding, 0 to 255; the paper's is gray.
    """

    def __init__(
        self, size: Size, min_scale: float = 0.1, max_scale: float = 2.0, fill: int = 128
    ) -> None:
        super().__init__()
        self.size = _checked_size(size)
        self.min_scale, self.max_scale, self.fill = min_scale, max_scale, fill
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"needs 0 < min_scale <= max_scale, got {min_scale} and {max_scale}")

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Resize the pair and cut or pad it to `size`."""
        height, width = target.image_size
        fit = min(self.size[0] / height, self.size[1] / width)
        factor = _draw_float(self.min_scale, self.max_scale)
        image, target = resize(image, target, _scaled((height, width), fit * factor))
        return random_window(image, target, self.size, self.fill)


class RandomCrop(PairTransform):
    """Crop a random window that holds as much as it can of at least one object.

    Each side of the window is a random part of the image's. Where there are objects, one of them
    is drawn: the window grows to at least ``min_visibility`` of that object's box and is placed so
    that it covers the whole box, or lies inside it where the box is larger. Images without objects
    are cropped anywhere. Objects of which less than ``min_visibility`` of the box is left are
    removed; crowd regions stay as long as any of them is in the window, since what they cover must
    still be ignored.

    Args:
        min_scale: least part of the image's height and width that the window's have, in (0, 1].
        max_scale: greatest part.
        min_visibility: share of a box's area that must be left, in [0, 1].
    """

    def __init__(
        self, min_scale: float = 0.5, max_scale: float = 1.0, min_visibility: float = 0.25
    ) -> None:
        super().__init__()
        self.min_scale, self.max_scale = min_scale, max_scale
        self.min_visibility = min_visibility
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(
                f"needs 0 < min_scale <= max_scale <= 1, got {min_scale} and {max_scale}"
            )
        if not 0 <= min_visibility <= 1:
            raise ValueError(f"min_visibility must be in [0, 1], got {min_visibility}")

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Crop the pair and remove the objects that are mostly cut away."""
        height, width = target.image_size
        objects = (~target.crowd).nonzero()[:, 0].tolist()
        if objects:
            chosen = objects[_draw_int(0, len(objects) - 1)]
            x1, y1, x2, y2 = target.boxes[chosen].tolist()
            top, new_height = self._interval(height, y1, y2)
            left, new_width = self._interval(width, x1, x2)
        else:
            top, new_height = self._interval(height, 0, height)
            left, new_width = self._interval(width, 0, width)
        cropped_image, cropped = window(image, target, left, top, (new_height, new_width))
        visible = box_area(cropped.boxes) / box_area(target.boxes).clamp(min=1e-9)
        keep = torch.where(target.crowd, visible > 0, visible >= self.min_visibility)
        if objects:
            keep[chosen] = True  # rounding to whole pixels may have cost it a hair too much
        return cropped_image, cropped[keep]

    def _interval(self, length: int, start: float, end: float) -> tuple[int, int]:
        """(offset, length) along one axis that covers [start, end], or lies inside it."""
        drawn = length * _draw_float(self.min_scale, self.max_scale)
        needed = (end - start) * math.sqrt(self.min_visibility)
        side = min(length, max(1, _round(drawn), math.ceil(needed)))
        low, high = sorted((start, end - side))
        low, high = max(0, math.ceil(low)), min(length - side, math.floor(high))
        # No whole number between them: the nearest one.
        return (_draw_int(low, high) if low <= high else min(low, length - side)), side


def random_window(image: tv_tensors.Image, target: Instances, size: Size, fill: int) -> Pair:
    """Cut a window of ``size`` at random where the image is larger, pad where it is smaller."""
    height, width = target.image_size
    top = _draw_int(0, max(height - size[0], 0))
    left = _draw_int(0, max(width - size[1], 0))
    return window(image, target, left, top, size, fill)


def _scaled(size: Size, scale: float) -> Size:
    return max(1, _round(size[0] * scale)), max(1, _round(size[1] * scale))


def _round(value: float) -> int:
    """Round half up, where Python's ``round`` goes to the even neighbour."""
    return math.floor(value + 0.5)


def _draw_int(low: int, high: int) -> int:
    """A uniform draw from low..high, both included, from torch's global generator."""
    return int(torch.randint(low, high + 1, ()))


def _draw_float(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _checked_size(size: Sequence[int]) -> Size:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {size}")
    return size[0], size[1]
