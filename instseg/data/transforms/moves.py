"""The moves that transforms are made of, each of the image and of its objects.

Each changes the image and makes the one matching call of `Instances.transformed`, so that the two
cannot drift apart. Random draws come from torch's global generator, which the data set seeds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from instseg.ops import box_area
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.instances import Instances

Pair = tuple[tv_tensors.Image, Instances]
"""An image ``uint8`` or ``uint16`` ``[C, H, W]`` and its objects, ``image_size == (H, W)``."""


class PairTransform(v2.Transform, ABC):
    """A v2 transform of an image and its `Instances`.

    Subclasses override ``forward``, since that of ``v2.Transform`` hands only tensors and PIL
    images on to ``transform()``.
    """

    @abstractmethod
    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Transform the pair; ``target.image_size`` is the image's size before and after."""


def resize(
    image: tv_tensors.Image, target: Instances, size: Size, *, antialias: bool = True
) -> Pair:
    """Resample to ``size`` (height, width): bilinear, by default antialiased where it shrinks.

    Without antialiasing to the bit as OpenCV's ``INTER_LINEAR``, with which others have trained.
    """
    if not antialias:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        resized = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        resized = resized.reshape(*size, -1)  # OpenCV drops the axis of a single channel
        image = tv_tensors.Image(torch.from_numpy(resized).permute(2, 0, 1))
        return image, target.resized(size)
    if size == (1, 1):  # where torch's kernel for uint8 fails unless the channels come last
        image = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    return F.resize(image, list(size), antialias=antialias), target.resized(size)


def hflip(image: tv_tensors.Image, target: Instances) -> Pair:
    """Mirror left and right."""
    size = target.image_size
    return F.horizontal_flip(image), target.transformed(AxisTransform.hflip(size[1]), size)


def window(
    image: tv_tensors.Image, target: Instances, left: int, top: int, size: Size, fill: int = 0
) -> Pair:
    """Cut a window of ``size`` whose corner is the pixel (``top``, ``left``) of the image.

    What reaches beyond the image at the right and bottom is filled with ``fill``, see `intensity`.
    """
    height, width = size
    inner_height = min(height, target.image_size[0] - top)
    inner_width = min(width, target.image_size[1] - left)
    image = F.crop(image, top, left, inner_height, inner_width)
    if (inner_height, inner_width) != size:
        borders = [0, 0, width - inner_width, height - inner_height]
        image = F.pad(image, borders, fill=intensity(fill, image.dtype))
    return image, target.transformed(AxisTransform.crop(left, top), size)


def random_window(image: tv_tensors.Image, target: Instances, size: Size, fill: int) -> Pair:
    """Cut a window of ``size`` at random where the image is larger, pad where it is smaller."""
    height, width = target.image_size
    top = draw_int(0, max(height - size[0], 0))
    left = draw_int(0, max(width - size[1], 0))
    return window(image, target, left, top, size, fill)


def place(
    image: tv_tensors.Image,
    target: Instances,
    left: int,
    top: int,
    size: Size,
    fill: Sequence[int],
) -> Pair:
    """Put the image on a canvas of ``size`` that holds it whole, its corner at (``top``, ``left``).

    The rest of the canvas has the colour ``fill``, one value a channel, see `intensity`.
    """
    height, width = target.image_size
    borders = [left, top, size[1] - width - left, size[0] - height - top]
    moved = target.transformed(AxisTransform.crop(-left, -top), size)
    return F.pad(image, borders, fill=[intensity(value, image.dtype) for value in fill]), moved


def intensity(value: int, dtype: torch.dtype) -> int:
    """A value of 0..255 as images of ``dtype``, uint8 or uint16, have it: 255 is white in both."""
    return value * (torch.iinfo(dtype).max // 255)


def kind(image: Tensor) -> str:
    """The dtype and the number of channels of an image, for messages."""
    return f"{str(image.dtype).removeprefix('torch.')} [{image.shape[0]}, H, W]"


def check_alike(name: str, images: Sequence[Tensor]) -> None:
    """Refuse to mix images of different kinds.

    Args:
        name: of the transform.
        images: ``[C, H, W]`` each.

    Raises:
        ValueError: they differ in the number of channels or in dtype.
    """
    kinds = sorted({kind(image) for image in images})
    if len(kinds) > 1:
        raise ValueError(
            f"{name} mixes images of one dtype and number of channels, got {' and '.join(kinds)}; "
            "read all with 8 bits, or leave it out"
        )


def visible_enough(before: Instances, after: Instances, min_visibility: float) -> Tensor:
    """Which objects a move without scaling leaves in the image.

    Args:
        before: N objects.
        after: the same ones, moved and clipped.
        min_visibility: share of the area of a box that must be left, in [0, 1]. Crowd regions stay
            as long as any of them is seen, since what they cover must still be ignored.

    Returns:
        ``bool [N]``.
    """
    visible = box_area(after.boxes) / box_area(before.boxes).clamp(min=1e-9)
    return (visible > 0) & (before.crowd | (visible >= min_visibility))


def scaled(size: Size, scale: float) -> Size:
    """``size`` times ``scale``, rounded half up, at least one pixel."""
    return max(1, round_half_up(size[0] * scale)), max(1, round_half_up(size[1] * scale))


def round_half_up(value: float) -> int:
    """Round half up, where Python's ``round`` goes to the even neighbour."""
    return math.floor(value + 0.5)


def draw_int(low: int, high: int) -> int:
    """A uniform draw from low..high, both included."""
    return int(torch.randint(low, high + 1, ()))


def draw_float(low: float, high: float) -> float:
    """A uniform draw from [low, high)."""
    return float(torch.empty(()).uniform_(low, high))


def happens(p: float) -> bool:
    """True with probability ``p``."""
    return draw_float(0, 1) < p


def checked_size(size: Sequence[int]) -> Size:
    """``size`` as a tuple.

    Raises:
        ValueError: it is not (height, width), both at least 1.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width), both at least 1, got {size}")
    return size[0], size[1]


def check_probability(name: str, value: float) -> None:
    """Refuse what is not in [0, 1].

    Raises:
        ValueError: with ``name`` and ``value``.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_scales(min_scale: float, max_scale: float, limit: float = math.inf) -> None:
    """Refuse a range of scales that is empty, or not within (0, ``limit``].

    Raises:
        ValueError: with both values.
    """
    if not 0 < min_scale <= max_scale <= limit:
        at_most = "" if limit == math.inf else f" <= {limit:g}"
        raise ValueError(
            f"needs 0 < min_scale <= max_scale{at_most}, got {min_scale} and {max_scale}"
        )
