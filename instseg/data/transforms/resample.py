"""A pair resampled at any source coordinates: what deformations and mirrored borders share.

Every pixel of the result names the place of the source image that it shows, and objects go where
their pixels go. Objects without masks go where the pixels inside their boxes go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors

from instseg.data.mask_columns import decode_columns, encode_columns
from instseg.data.transforms.moves import Pair
from instseg.ops import instance_rles, rle
from instseg.structures.instances import Instances
from instseg.structures.masks import Segmentation, SparseMasks

Window = tuple[slice, slice]
"""Rows and columns of a part of an image."""

FloatMap = npt.NDArray[np.float32]

# Side in pixels of the blocks that tell in which part of the result an object can be.
_BLOCK = 16


def mirrored(index: FloatMap, length: int) -> FloatMap:
    """Indices of any size brought into ``0..length - 1`` by mirroring at the outermost pixels.

    The outermost pixels are not repeated: -1 becomes 1, and ``length`` becomes ``length - 2``. Far
    indices are mirrored again and again.
    """
    if length == 1:
        return np.zeros_like(index)
    period = np.float32(2 * (length - 1))
    index = np.fmod(np.abs(index), period)
    return np.minimum(index, period - index)


def resample(image: tv_tensors.Image, target: Instances, rows: FloatMap, columns: FloatMap) -> Pair:
    """The pair whose pixel (i, j) shows the source's at (``rows[i, j]``, ``columns[i, j]``).

    The image is interpolated bilinearly (by OpenCV, whose coordinates have steps of 1/32 pixel);
    masks take the nearest pixel, so that objects that touch neither overlap nor part.

    Args:
        image: ``uint8`` or ``uint16`` ``[C, H, W]``.
        target: the objects; masks, if any, are `SparseMasks`.
        rows: ``[h, w]``, in 0..H - 1; 0 is the centre of the first row of pixels.
        columns: ``[h, w]``, in 0..W - 1.

    Returns:
        The image ``[C, h, w]``, and the objects that have a pixel in it, with run-length masks and
        the boxes of their pixels.
    """
    channels = [
        cv2.remap(
            np.ascontiguousarray(channel),
            columns,
            rows,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for channel in image.numpy()
    ]
    moved = tv_tensors.Image(torch.from_numpy(np.stack(channels)))
    return moved, _follow(target, rows, columns)


def _follow(target: Instances, rows: FloatMap, columns: FloatMap) -> Instances:
    size = rows.shape[0], rows.shape[1]
    codes = None if target.masks is None else instance_rles(target)
    sources = target.boxes.tolist() if codes is None else [rle.to_box(code) for code in codes]
    # From centres to coordinates in which a pixel begins at its index.
    rows, columns = rows + np.float32(0.5), columns + np.float32(0.5)
    nearest_rows, nearest_columns = rows.astype(np.int32), columns.astype(np.int32)
    blocks = _Blocks.of(rows, columns)
    canvas = np.zeros(size, dtype=bool, order="F")
    kept: list[int] = []
    boxes: list[list[float]] = []
    moved: list[Segmentation] = []
    for i, (x1, y1, x2, y2) in enumerate(sources):
        window = blocks.window(x1, y1, x2, y2)
        if codes is None:
            y, x = rows[window], columns[window]
            covered = (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
        else:
            # One column more at each side, which is empty, stands for all beyond.
            left, right = max(int(x1) - 1, 0), min(int(x2) + 1, target.image_size[1])
            x = np.minimum(np.maximum(nearest_columns[window], left), right - 1) - left
            covered = decode_columns(codes[i], left, right)[nearest_rows[window], x]
        if not covered.any():
            continue
        kept.append(i)
        boxes.append(_tight_box(covered, window))
        if codes is not None:
            columns_of_window = canvas[:, window[1]]
            columns_of_window[window[0]] = covered
            moved.append(encode_columns(columns_of_window, window[1].start, size[1]))
            columns_of_window[window[0]] = False
    return replace(
        target[kept],
        image_size=size,
        boxes=target.boxes.new_tensor(boxes).reshape(-1, 4),
        masks=None if codes is None else SparseMasks(moved, size, size),
    )


@dataclass(frozen=True)
class _Blocks:
    """The least and the greatest source coordinate in each block of the result, ``[b, b']``."""

    top: FloatMap
    bottom: FloatMap
    left: FloatMap
    right: FloatMap

    @classmethod
    def of(cls, rows: FloatMap, columns: FloatMap) -> _Blocks:
        return cls(
            _reduced(np.minimum, rows),
            _reduced(np.maximum, rows),
            _reduced(np.minimum, columns),
            _reduced(np.maximum, columns),
        )

    def window(self, x1: float, y1: float, x2: float, y2: float) -> Window:
        """A part of the result outside of which no pixel has its source in the box."""
        hit = (self.left < x2) & (self.right >= x1) & (self.top < y2) & (self.bottom >= y1)
        rows, columns = np.flatnonzero(hit.any(axis=1)), np.flatnonzero(hit.any(axis=0))
        if not len(rows):
            return slice(0, 0), slice(0, 0)
        return (
            slice(rows[0] * _BLOCK, (rows[-1] + 1) * _BLOCK),
            slice(columns[0] * _BLOCK, (columns[-1] + 1) * _BLOCK),
        )


def _reduced(least_or_greatest: np.ufunc, values: FloatMap) -> FloatMap:
    for axis, length in enumerate(values.shape):
        starts = np.arange(0, length, _BLOCK)
        values = least_or_greatest.reduceat(values, starts, axis=axis)
    return values


def _tight_box(covered: npt.NDArray[np.bool_], window: Window) -> list[float]:
    """x1, y1, x2, y2 of the true pixels of a window of the image."""
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    top, left = window[0].start, window[1].start
    edges = left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
    return [float(edge) for edge in edges]
