"""Checks of single values in annotation and result files, whose writers are not trusted.

A check returns None, or the defect in words that follow "record 3: ". Only what would crash a
scorer, make it read memory that is not its own, or give a meaningless number is a defect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from instseg.evaluation.mask_boxes import box_of_runs
from instseg.ops import rle
from instseg.structures.geometry import MAX_PIXELS, Size

_SHOWN = 5


def raise_defects(
    error: type[ValueError], source: object, defects: Sequence[str], total: int, what: str
) -> None:
    """Raise ``error`` with the count and the first few of ``defects``, if there are any."""
    if not defects:
        return
    lines = [f"{source}: {len(defects)} of {total} {what} cannot be used:", *defects[:_SHOWN]]
    if len(defects) > _SHOWN:
        lines.append(f"... and {len(defects) - _SHOWN} more")
    raise error("\n  ".join(lines))


def is_int(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer of 64 bits (a bool is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_finite(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number (a bool is not one)."""
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


def id_defect(record: dict[str, Any], key: str, known: Any, where: str) -> str | None:
    """A missing, non-integer or unknown id; ``where`` says what knows it."""
    if key not in record:
        return f"key {key!r} is missing"
    value = record[key]
    if not is_int(value):
        return f"key {key!r} must be an integer, got {short(value)}"
    return None if value in known else f"key {key!r}: {value} is not in {where}"


def box_defect(box: object) -> str | None:
    """A ``bbox`` that is not four finite numbers x, y, width, height with sides >= 0."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return f"key 'bbox' must be [x, y, width, height], got {short(box)}"
    if not all(is_finite(v) for v in box):
        return f"key 'bbox' must hold finite numbers, got {short(list(box))}"
    if box[2] < 0 or box[3] < 0:
        return f"key 'bbox' has a negative width or height: {short(list(box))}"
    return None


def polygons_defect(polygons: Sequence[Any], size: Size) -> str | None:
    """Polygons that are not flat lists of >= 3 finite points on or near the image.

    Points may lie up to one image size outside: COCO's rasteriser takes memory in proportion to
    a polygon's length, whatever the image. It reads four numbers as a box, hence the three points.
    """
    height, width = size
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or not all(is_finite(v) for v in polygon):
            return f"key 'segmentation': a polygon is not a list of numbers: {short(polygon)}"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"key 'segmentation': {len(polygon)} numbers are not a polygon of >= 3 points"
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height:
            return f"key 'segmentation': a polygon lies far outside the {width} x {height} image"
    return None


def rle_defect(code: dict[str, Any], size: Size) -> str | None:
    """A run-length code whose size is not the image's or whose runs do not fill it exactly."""
    if "size" not in code or "counts" not in code:
        return "key 'segmentation' must have the keys 'size' and 'counts'"
    given = code["size"]
    if not (isinstance(given, list | tuple) and all(map(is_int, given)) and tuple(given) == size):
        return (
            f"key 'segmentation': its size is {short(given)} but the image's "
            f"[height, width] is {list(size)}"
        )
    runs = _runs(code["counts"])
    if runs is None:
        return f"key 'segmentation': malformed 'counts' {short(code['counts'])}"
    if (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        return (
            f"key 'segmentation': malformed 'counts', whose runs add up to {int(runs.sum())} "
            f"of the image's {size[0] * size[1]} pixels"
        )
    return None


def boundary_defect(segmentation: Any, size: Size) -> str | None:
    """A sound mask whose box has more pixels than a boundary is made of.

    Args:
        segmentation: polygons or a run-length code, without a defect of theirs.
        size: of the image.
    """
    if size[0] * size[1] <= MAX_PIXELS:
        return None
    if isinstance(segmentation, dict):
        runs = _runs(segmentation["counts"])
        assert runs is not None
        _, _, height, width = box_of_runs(runs, size[0])
    else:
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        # COCO's rasteriser may round a point to the next pixel.
        low, high = np.floor(points.min(axis=0)) - 1, np.ceil(points.max(axis=0)) + 1
        width, height = np.clip(high, 0, size[::-1]) - np.clip(low, 0, size[::-1])
    if height * width <= MAX_PIXELS:
        return None
    return (
        f"key 'segmentation': the mask spans {int(height)} x {int(width)} pixels, and boundaries "
        f"are made of at most {MAX_PIXELS}: cut the image into tiles, or leave out the IoU type "
        "'boundary'"
    )


def _runs(counts: object) -> npt.NDArray[np.int64] | None:
    """The run lengths of either form of ``counts``; None where they cannot be read."""
    if isinstance(counts, str | bytes):
        try:
            return rle.decode_counts(counts)
        except ValueError:
            return None
    if isinstance(counts, list) and all(is_int(v) and 0 <= v < 2**32 for v in counts):
        return np.array(counts, dtype=np.int64)
    return None
