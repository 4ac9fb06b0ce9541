"""Checks and overlaps of COCO's run-length strings, in numpy and pycocotools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from instseg.structures.masks import RLE


def rle_pair_iou(
    first: Sequence[RLE],
    second: Sequence[RLE],
    first_index: npt.NDArray[np.int64],
    second_index: npt.NDArray[np.int64],
    crowd: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """See `instseg.ops.rle.pair_iou`."""
    result = np.zeros(len(first_index))
    starts = np.flatnonzero(np.diff(first_index, prepend=-1))
    for chosen in np.split(np.arange(len(first_index)), starts[1:]):
        result[chosen] = coco_mask.iou(
            [first[first_index[chosen[0]]]],
            [second[i] for i in second_index[chosen]],
            crowd[chosen].astype(np.uint8),
        )[0]
    return result


def rle_fill(counts: Sequence[bytes], pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """See `instseg.ops.rle.fills_image`."""
    sizes = np.fromiter(map(len, counts), np.int64, len(counts))
    ends = np.cumsum(sizes)
    result = np.zeros(len(counts), np.bool_)
    begin = 0
    while begin < len(counts):  # a few megabytes at a time
        before = ends[begin] - sizes[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + 2_000_000)))
        part = slice(begin, end)
        result[part] = _fill(b"".join(counts[part]), sizes[part], pixels[part])
        begin = end
    return result


def _fill(
    data: bytes, sizes: npt.NDArray[np.int64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """`fills_image` of joined strings; see `decode_counts` for the code."""
    good = sizes > 0
    string_ends = np.cumsum(sizes)
    codes = np.frombuffer(data, np.uint8).astype(np.int32) - 48
    # A string cut short: its last character says that more follow. Its last number ends there.
    final = string_ends[good] - 1
    good[good] = (codes[final] & 32) == 0
    ends_number = (codes & 32) == 0
    ends_number[final] = True
    last = np.flatnonzero(ends_number)
    if len(last) == 0:
        return good
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    owner = np.searchsorted(string_ends, last, side="right")
    strange = np.flatnonzero((codes < 0) | (codes > 63))
    good[np.searchsorted(string_ends, strange, side="right")] = False
    good[owner[lengths > 7]] = False

    values = (codes[first] & 31).astype(np.int64)
    for place in range(1, min(int(lengths.max()), 7)):
        long = np.flatnonzero(lengths > place)
        values[long] += (codes[first[long] + place] & 31).astype(np.int64) << (5 * place)
    negative = np.flatnonzero(codes[last] & 16)
    values[negative] -= np.int64(1) << (5 * np.minimum(lengths[negative], 8))

    starts = np.searchsorted(owner, np.arange(len(sizes)))
    index = np.arange(len(last)) - starts[owner]
    # Runs are stored as differences to the run before last, in two chains but for the first three.
    for chain in (index % 2 == 1, (index % 2 == 0) & (index > 0)):
        sums = np.cumsum(np.where(chain, values, 0))
        base = np.concatenate([[0], sums])[starts]
        values = np.where(chain, sums - base[owner], values)
    good[owner[values < 0]] = False
    full: npt.NDArray[np.bool_] = np.bincount(owner, values, minlength=len(sizes)) == pixels
    return good & full
