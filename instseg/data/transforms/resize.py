"""Transforms that resize the whole image: to a size, into a frame, or by the shortest edge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    checked_size,
    draw_int,
    resize,
    scaled,
)
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances


class Resizing(PairTransform):
    """A transform that begins with a resize, of which it can say how large it makes an image.

    It takes an image of fewer pixels than its target speaks of, as far as `largest_size` allows
    (decoded at reduced scale), and gives what the whole one would have given, but for the filter
    that the missing pixels went through.
    """

    @abstractmethod
    def largest_size(self, size: Size) -> Size:
        """(height, width), neither of which any draw passes for an image of ``size``."""


class Resize(Resizing):
    """Resize to exactly one of ``sizes``; the aspect ratio is not kept.

    Args:
        sizes: (height, width), or several, of which each sample draws one (multi-scale).
        antialias: low-pass filter where the image shrinks. False is OpenCV's plain bilinear
            resampling, and that of torchvision's SSD.
    """

    def __init__(self, sizes: Size | Sequence[Size], *, antialias: bool = True) -> None:
        super().__init__()
        self.sizes, self.antialias = _checked_sizes(sizes), antialias

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Draw a size and resize the pair."""
        return resize(image, target, _draw_size(self.sizes), antialias=self.antialias)

    def largest_size(self, size: Size) -> Size:
        """See `Resizing`; without antialiasing, which must see every pixel, at least ``size``."""
        return _bound([*self.sizes, *([] if self.antialias else [size])])


class Letterbox(Resizing):
    """Resize to the largest size that fits in a frame and keeps the aspect ratio.

    The rule of YOLOX's preprocessing: the scale is the lesser of frame over image height and frame
    over image width, and both sides of the result are rounded down, so that one of them can miss
    its frame by a pixel. The frame itself is not filled here: models pad their batches at the right
    and bottom, with the colour that they were trained with.

    Args:
        sizes: (height, width) of the frame, or several, of which each sample draws one
            (multi-scale).
        antialias: low-pass filter where the image shrinks. False is OpenCV's plain bilinear
            resampling, with which the published YOLOX scores were measured.
    """

    def __init__(self, sizes: Size | Sequence[Size], *, antialias: bool = False) -> None:
        super().__init__()
        self.sizes, self.antialias = _checked_sizes(sizes), antialias

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Draw a frame and fit the pair into it."""
        size = letterbox_size(target.image_size, _draw_size(self.sizes))
        return resize(image, target, size, antialias=self.antialias)

    def largest_size(self, size: Size) -> Size:
        """See `Resizing`; without antialiasing, which must see every pixel, at least ``size``."""
        fitted = [letterbox_size(size, frame) for frame in self.sizes]
        return _bound([*fitted, *([] if self.antialias else [size])])


def letterbox_size(size: Size, frame: Size) -> Size:
    """The size (height, width) that `Letterbox` gives an image of ``size`` in ``frame``."""
    scale = min(frame[0] / size[0], frame[1] / size[1])
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


class ResizeShortestEdge(Resizing):
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
        short = self.sizes[draw_int(0, len(self.sizes) - 1)]
        return resize(image, target, self._size(target.image_size, short))

    def largest_size(self, size: Size) -> Size:
        """See `Resizing`."""
        return self._size(size, max(self.sizes))

    def _size(self, size: Size, short: int) -> Size:
        return scaled(size, min(short / min(size), self.max_size / max(size)))


def _draw_size(sizes: Sequence[Size]) -> Size:
    return sizes[draw_int(0, len(sizes) - 1)] if len(sizes) > 1 else sizes[0]


def _bound(sizes: Sequence[Size]) -> Size:
    """The smallest size that holds each of some."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _checked_sizes(sizes: Size | Sequence[Size]) -> tuple[Size, ...]:
    several = [sizes] if any(isinstance(size, int) for size in sizes) else sizes
    if not several:
        raise ValueError("sizes must hold at least one (height, width), got none")
    return tuple(checked_size(size) for size in several)  # type: ignore[arg-type]
