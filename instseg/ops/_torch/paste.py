"""RoI masks on the pixels of an image: where each pixel samples its mask, the values, their runs.

The arithmetic is fixed to the last bit, so that all backends agree on which pixels pass a
threshold. The mask gets a border of zeros. Along each axis a pixel has a position in it, and from
that two neighbouring cells and the weight w of the second one; a mix of two values is
a * (1 - w) + b * w, rounded after every operation. Columns are mixed first, then rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.structures.geometry import Size

# Pixels whose values are held at a time while runs are sought.
_STRIP = 1 << 22
# Boxes of `_whole_pixels` are cut to this: 64-bit whole numbers hold all that follows from them.
_FAR = 2.0**40


class Axis(NamedTuple):
    """Where the pixels of a patch of the image sample a mask, along one axis.

    Args:
        first: the first pixel of the patch.
        low: ``int64 [P]``, for each pixel the first of its two cells in the mask with its border.
        high: ``int64 [P]``, the second one.
        weight: ``[P]``, the weight of the second one.
    """

    first: int
    low: Tensor
    high: Tensor
    weight: Tensor

    def part(self, where: slice) -> Axis:
        """Some of the pixels, for a slice with a start."""
        return Axis(self.first + where.start, *(v[where] for v in self[1:]))

    def to(self, device: torch.device) -> Axis:
        """The same on another device."""
        return Axis(self.first, *(v.to(device) for v in self[1:]))


def paste_masks(probs: Tensor, boxes: Tensor, image_size: Size, aligned: bool) -> Tensor:
    """See `instseg.ops.paste_masks`; the boxes are finite."""
    wide = torch.float64 if probs.dtype == torch.float64 else torch.float32
    canvas = probs.new_zeros((len(probs), *image_size))
    masks, boxes = _bordered(probs.to(wide)), boxes.to("cpu", wide)
    for page, mask, box in zip(canvas, masks, boxes, strict=True):
        rows, columns = (a.to(probs.device) for a in _axes(box, mask, image_size, aligned))
        bottom, right = rows.first + len(rows.low), columns.first + len(columns.low)
        page[rows.first : bottom, columns.first : right] = _values(mask, rows, columns)
    return canvas


def masks_to_rle(
    probs: Tensor, boxes: Tensor, image_size: Size, threshold: float, aligned: bool
) -> list[bytes]:
    """COCO's compressed counts of each mask; float32 tensors on the CPU, finite boxes."""
    codes = []
    for mask, box in zip(_bordered(probs), boxes, strict=True):
        rows, columns = _axes(box, mask, image_size, aligned)
        codes.append(_compress(_run_lengths(mask, rows, columns, image_size, threshold)))
    return codes


def _bordered(probs: Tensor) -> Tensor:
    return F.pad(probs, (1, 1, 1, 1))


# --- coordinates ---------------------------------------------------------------------------------


def _axes(box: Tensor, mask: Tensor, image_size: Size, aligned: bool) -> tuple[Axis, Axis]:
    """Rows and columns of the patch that a box ``[4]`` reaches, empty where there are none."""
    x1, y1, x2, y2 = box.unbind()
    cells = mask.shape[-1] - 2
    return _axis(y1, y2, cells, image_size[0], aligned), _axis(
        x1, x2, cells, image_size[1], aligned
    )


def _axis(low: Tensor, high: Tensor, cells: int, extent: int, aligned: bool) -> Axis:
    rule = _pixel_centres if aligned else _whole_pixels
    first, position = rule(low, high, cells, extent)
    position = position.clamp(0, cells + 1)
    whole = position.floor()
    index = whole.long()
    return Axis(first, index, (index + 1).clamp(max=cells + 1), position - whole)


def _pixel_centres(low: Tensor, high: Tensor, cells: int, extent: int) -> tuple[int, Tensor]:
    """Each pixel that the box touches samples the mask at its centre; cells tile the box."""
    length = high - low
    if length <= 0:
        return 0, low.new_zeros(0)
    pixels = _inside(math.floor(low), math.ceil(high), extent)
    scale = low.new_tensor(cells) / length  # a true division: `cells / length` rounds twice
    return pixels.start, (_tensor(pixels, low) + 0.5 - low) * scale + 0.5


def _whole_pixels(low: Tensor, high: Tensor, cells: int, extent: int) -> tuple[int, Tensor]:
    """torchvision's: the mask with its border is resized to a box of whole pixels."""
    low, high = low.clamp(-_FAR, _FAR), high.clamp(-_FAR, _FAR)
    half = (high - low) * 0.5 * ((cells + 2) / cells)
    center = (high + low) * 0.5
    left, right = int(center - half), int(center + half)
    pixels = _inside(left, right + 1, extent)
    scale = low.new_tensor(cells + 2) / low.new_tensor(max(right - left + 1, 1))
    offsets = range(pixels.start - left, pixels.stop - left)
    return pixels.start, (_tensor(offsets, low) + 0.5) * scale - 0.5


def _inside(begin: int, end: int, extent: int) -> range:
    begin = min(max(begin, 0), extent)
    return range(begin, max(min(end, extent), begin))


def _tensor(values: range, like: Tensor) -> Tensor:
    # By way of int64, as a float `arange` rounds in its own way above 2^24.
    return torch.arange(values.start, values.stop).to(like)


# --- values --------------------------------------------------------------------------------------


def _values(mask: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Samples ``[rows, columns]`` of a mask with its border."""
    mixed = _mix(mask[:, columns.low], mask[:, columns.high], columns.weight)
    return _mix(mixed[rows.low], mixed[rows.high], rows.weight[:, None])


def _mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    # Neither `lerp` nor `addcmul`: they round otherwise, and not alike on all machines.
    return a * (1 - weight) + b * weight


# --- runs ----------------------------------------------------------------------------------------


def _run_lengths(
    mask: Tensor, rows: Axis, columns: Axis, image_size: Size, threshold: float
) -> npt.NDArray[np.int64]:
    """Lengths of the runs of off, on, off, ... pixels, down the columns of the whole image."""
    height, width = image_size
    tall = len(rows.low) + 1
    step = max(_STRIP // tall, 1)
    edges = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(columns.low), step):
        strip = columns.part(slice(start, start + step))
        # One more pixel, off, under each column: every run begins and ends within its column.
        on = F.pad((_values(mask, rows, strip) > threshold).T, (0, 1)).reshape(-1).numpy()
        column, row = np.divmod(np.flatnonzero(np.diff(on, prepend=False)), tall)
        edges.append((strip.first + column) * height + rows.first + row)
    place, times = np.unique(np.concatenate(edges), return_counts=True)
    # Twice in one place: a run goes on from the bottom of the image to the top of the next column.
    ends = np.union1d(place[times == 1], [height * width])
    return np.diff(ends, prepend=0)


def _compress(counts: npt.NDArray[np.int64]) -> bytes:
    """COCO's string of run lengths: see `instseg.ops.rle.decode_counts`."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    digits = []
    open_ = np.ones(len(rest), dtype=np.bool_)
    while open_.any():
        digit = rest & 31
        rest >>= 5
        more = rest != np.where(digit & 16, -1, 0)
        digits.append(np.where(open_, digit + 32 * more + 48, 0))
        open_ &= more
    codes = np.stack(digits, axis=1).astype(np.uint8)
    return bytes(codes[codes != 0])
