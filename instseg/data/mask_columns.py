"""Some columns of run-length masks.

Run lengths go down the columns of an image, so that a range of columns is a range of the runs, and
an object costs by its own width instead of the image's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from instseg.ops import rle
from instseg.structures.masks import RLE


def decode_columns(code: RLE, left: int, right: int) -> npt.NDArray[np.bool_]:
    """Columns ``left`` to ``right - 1`` of a mask ``[H, W]``, as ``bool [H, right - left]``."""
    height = code["size"][0]
    counts = rle.decode_counts(code["counts"])
    # Not np.clip, which spends longer on looking at the bounds than on a few runs.
    ends = np.minimum(np.maximum(counts.cumsum(), left * height), right * height)
    lengths = np.diff(ends, prepend=left * height)
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, lengths).reshape(right - left, height).T


def encode_columns(pixels: npt.NDArray[np.bool_], left: int, width: int) -> RLE:
    """A mask ``[H, width]`` of zeros but for its columns ``pixels`` ``[H, w]`` from ``left`` on."""
    height = len(pixels)
    down = np.concatenate([[False], pixels.T.reshape(-1), [False]])
    changes = np.flatnonzero(down[1:] != down[:-1]) + left * height
    counts = np.diff(changes, prepend=0, append=width * height).tolist()
    if counts[-1] == 0:
        counts.pop()
    return rle.from_uncompressed(counts, (height, width))
