"""Windows of one size out of images of any size."""

from __future__ import annotations

import numpy as np
from torchvision import tv_tensors

from instseg.data.transforms.moves import Pair, PairTransform, checked_size, draw_int, window
from instseg.data.transforms.resample import mirrored, resample
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances


class RandomWindow(PairTransform):
    """Cut a window of ``size`` at random; where the image is smaller, mirror it at its borders.

    An image smaller than the window lies somewhere in it at random. The outermost pixels are not
    repeated. The mirrored parts of an object belong to it, so that the target is true of every
    pixel; boxes then hold the mirrored parts too, which suits semantic networks rather than
    detectors. Objects without a pixel in the window keep an empty box, which `Compose` removes.

    Args:
        size: (height, width) of every result.

    Raises:
        ValueError: ``size`` is not two lengths of at least 1.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = checked_size(size)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Cut the window."""
        (height, width), (wanted_height, wanted_width) = target.image_size, self.size
        top, left = _offset(height, wanted_height), _offset(width, wanted_width)
        if height >= wanted_height and width >= wanted_width:
            return window(image, target, left, top, self.size)
        rows = np.arange(top, top + wanted_height, dtype=np.float32)
        columns = np.arange(left, left + wanted_width, dtype=np.float32)
        grid = np.meshgrid(mirrored(rows, height), mirrored(columns, width), indexing="ij")
        return resample(image, target, *grid)


def _offset(length: int, wanted: int) -> int:
    """Where a window of ``wanted`` pixels begins; below 0 where the image is smaller."""
    return draw_int(min(length - wanted, 0), max(length - wanted, 0))
