"""Masks within their own boxes, from run-length codes: what follows is as large as the object."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from instseg.ops import rle
from instseg.structures.masks import RLE

Ints = npt.NDArray[np.int64]


class PixelBox(NamedTuple):
    """A box of whole pixels: first row and column, and how many of each."""

    top: int
    left: int
    height: int
    width: int


def box_of_runs(runs: Ints, image_height: int) -> PixelBox:
    """The tight box of a mask; zeros for an empty one.

    Args:
        runs: ``int64 [R]``, lengths of background and foreground in turn, column by column.
        image_height: length of a column.
    """
    return _box(*_foreground(runs), image_height)


def decode_within_box(code: RLE) -> tuple[PixelBox, npt.NDArray[np.uint8]]:
    """The tight box of a mask, and its pixels ``uint8 [h, w]`` of zeros and ones, transposed.

    Memory goes by the box, whatever the size of the image.
    """
    image_height = code["size"][0]
    starts, stops = _foreground(rle.decode_counts(code["counts"]))
    box = _box(starts, stops, image_height)
    # A run that goes on in the next column fills the image's height, and so does the box then.
    columns, rows = np.divmod(starts, image_height)
    begins = (columns - box.left) * box.height + rows - box.top
    changes = np.zeros(box.width * box.height + 1, np.int8)
    changes[begins] = 1
    changes[begins + stops - starts] -= 1
    pixels = np.cumsum(changes[:-1], dtype=np.int8, out=changes[:-1]).view(np.uint8)
    return box, pixels.reshape(box.width, box.height).T


def _foreground(runs: Ints) -> tuple[Ints, Ints]:
    """First pixel of each foreground run, and the one after its last; without empty runs."""
    ends = np.cumsum(runs)
    stops = ends[1::2]
    starts = ends[::2][: len(stops)]
    return starts[starts < stops], stops[starts < stops]


def _box(starts: Ints, stops: Ints, image_height: int) -> PixelBox:
    if len(starts) == 0:
        return PixelBox(0, 0, 0, 0)
    left, first_row = np.divmod(starts, image_height)
    right, last_row = np.divmod(stops - 1, image_height)
    if (left == right).all():
        top, height = first_row.min(), last_row.max() + 1 - first_row.min()
    else:
        top, height = 0, image_height
    return PixelBox(int(top), int(left[0]), int(height), int(right[-1] - left[0] + 1))
