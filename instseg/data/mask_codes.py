"""Masks as bytes: polygons and run lengths, each part in the shortest form that loses nothing.

Annotation tools write coordinates with two decimals as a rule. A number k / 100 rounds to the same
64-bit float as its decimal text, so such a polygon is kept as integers k and comes back bit for
bit; any other is kept as 64-bit floats.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.data.coco import parse_segmentation
from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE, Segmentation


class PartKind(enum.IntEnum):
    """How one part of a mask is kept: a polygon, or the whole mask's run lengths."""

    HUNDREDTHS_16 = 0
    HUNDREDTHS_32 = 1
    FLOATS = 2
    RLE_TEXT = 3
    RLE_BYTES = 4
    RLE_RUNS = 5


Part = tuple[PartKind, bytes]

_DTYPES: dict[PartKind, np.dtype[Any]] = {
    PartKind.HUNDREDTHS_16: np.dtype("<u2"),
    PartKind.HUNDREDTHS_32: np.dtype("<i4"),
    PartKind.FLOATS: np.dtype("<f8"),
}

_CODE_KINDS: dict[type, PartKind] = {
    str: PartKind.RLE_TEXT,
    bytes: PartKind.RLE_BYTES,
    list: PartKind.RLE_RUNS,
}


def encode_mask(value: Any, size: Size) -> list[Part]:
    """A sound ``segmentation`` of an annotation (see `coco.parse_segmentation`) in parts."""
    mask = parse_segmentation(value, size)
    if isinstance(mask, dict):
        return [(_CODE_KINDS[type(value["counts"])], mask["counts"])]
    return [_encode_polygon(polygon.reshape(-1)) for polygon in mask]


def decode_mask(parts: list[Part], size: Size) -> Segmentation:
    """What `coco.parse_segmentation` made of the mask, in memory of its own."""
    kind, content = parts[0]
    if kind >= PartKind.RLE_TEXT:
        return _code(content, size)
    return [_decode_polygon(*part).reshape(-1, 2) for part in parts]


def original_mask(parts: list[Part], size: Size) -> list[list[float]] | RLE:
    """The ``segmentation`` as it stood in the annotation."""
    kind, content = parts[0]
    if kind < PartKind.RLE_TEXT:
        return [_decode_polygon(*part).tolist() for part in parts]
    code = _code(content, size)
    if kind == PartKind.RLE_TEXT:
        return {**code, "counts": content.decode("ascii")}
    if kind == PartKind.RLE_RUNS:
        return {**code, "counts": rle.decode_counts(content).tolist()}
    return code


def _code(content: bytes, size: Size) -> RLE:
    return {"size": list(size), "counts": content}


def _encode_polygon(flat: npt.NDArray[np.float64]) -> Part:
    rounded = np.rint(flat * 100)
    low, high = rounded.min(), rounded.max()
    if low >= -(2**31) and high < 2**31:
        # By way of integers, which have no minus zero; compared as bits for the same reason.
        whole = rounded.astype(np.int32)
        if ((whole / 100).view(np.int64) == flat.view(np.int64)).all():
            fits = low >= 0 and high < 2**16
            kind = PartKind.HUNDREDTHS_16 if fits else PartKind.HUNDREDTHS_32
            return kind, whole.astype(_DTYPES[kind]).tobytes()
    return PartKind.FLOATS, flat.astype(_DTYPES[PartKind.FLOATS]).tobytes()


def _decode_polygon(kind: PartKind, content: bytes) -> npt.NDArray[np.float64]:
    numbers = np.frombuffer(content, _DTYPES[kind])
    return numbers.copy() if kind == PartKind.FLOATS else numbers / 100
