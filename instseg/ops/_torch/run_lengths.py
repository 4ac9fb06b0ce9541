"""Checks and overlaps of COCO's run-length strings, in numpy and pycocotools."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from instseg.structures.run_lengths import RunLengths

Ints = npt.NDArray[np.int64]


def rle_pair_iou(
    first: RunLengths,
    second: RunLengths,
    first_index: Ints,
    second_index: Ints,
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


def rle_areas(masks: RunLengths) -> Ints:
    """See `instseg.ops.rle.areas`."""
    sizes = masks.end - masks.begin
    ends = np.cumsum(sizes)
    pixels = masks.size.prod(axis=1)
    result = np.zeros(len(masks), np.int64)
    begin = 0
    while begin < len(masks):  # a few megabytes at a time
        before = ends[begin] - sizes[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + 2_000_000)))
        part = slice(begin, end)
        strings = zip(masks.begin[part], masks.end[part], strict=True)
        data = b"".join(masks.text[a:b].tobytes() for a, b in strings)
        result[part] = _areas(data, sizes[part], pixels[part])
        begin = end
    return result


def _areas(data: bytes, sizes: Ints, pixels: Ints) -> Ints:
    """`areas` of joined strings; see `decode_counts` for the code."""
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
        return np.full(len(sizes), -1)
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
    good &= np.bincount(owner, values, minlength=len(sizes)) == pixels
    foreground = np.bincount(owner, np.where(index % 2, values, 0), minlength=len(sizes))
    return np.where(good, foreground, -1).astype(np.int64)
