"""The COCO annotation format: the file, and the three ways it writes a mask.

Source: https://cocodataset.org/#format-data and ``maskApi.c`` of the COCO API. Everything is
checked here before it reaches pycocotools, which trusts its input and can crash on a malicious one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE, Polygon, Segmentation

SECTIONS = ("images", "annotations", "categories")

_MAX_COORDINATE = 2**26  # pycocotools multiplies by 5 and rounds to 32 bits


class AnnotationError(ValueError):
    """An annotation file that cannot be used at all; the message names the file and the place."""


class SegmentationError(ValueError):
    """A ``segmentation`` value that is no mask; the message says why."""


def load_coco(path: str | Path) -> dict[str, Any]:
    """Read a COCO annotation file; its records are not looked at (see `defects.screen`).

    Returns:
        A dictionary that has the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: not JSON (with line and column), or a section is missing or no list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "is the file cut short?"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, an endless number, deep nesting
        raise AnnotationError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        hint = "; a list is a results file, not annotations" if isinstance(content, list) else ""
        raise AnnotationError(
            f"{path}: expected an object with the keys {', '.join(SECTIONS)}, "
            f"got a {type(content).__name__}{hint}"
        )
    for section in SECTIONS:
        if section not in content:
            raise AnnotationError(
                f"{path}: the key '{section}' is missing; there are: {', '.join(content) or 'none'}"
            )
        if not isinstance(content[section], list):
            raise AnnotationError(
                f"{path}: '{section}' must be a list, got a {type(content[section]).__name__}"
            )
    return content


def category_ids(coco: dict[str, Any]) -> list[int]:
    """The category ids in ascending order; label i is the i-th of them."""
    return sorted(category["id"] for category in coco["categories"])


def parse_segmentation(value: object, size: Size) -> Segmentation:
    """Turn a ``segmentation`` into polygons or compressed RLE.

    Polygon parts of fewer than three points cover nothing and are left out.

    Args:
        value: a list of flat polygons ``[x1, y1, x2, y2, ...]``, or an object with ``size``
            ``[height, width]`` and ``counts``, a list of run lengths or COCO's compressed string.
        size: (height, width) of the image.

    Raises:
        SegmentationError: the value is no mask on an image of that size.
    """
    if isinstance(value, dict):
        return _parse_rle(value, size)
    if not isinstance(value, list):
        raise SegmentationError(
            f"expected a list of polygons or an RLE object, got a {type(value).__name__}"
        )
    polygons = [_parse_polygon(part, i, size) for i, part in enumerate(value)]
    polygons = [polygon for polygon in polygons if len(polygon) >= 3]
    if not polygons:
        raise SegmentationError("no polygon has three points or more")
    return polygons


def segmentation_area(segmentation: Segmentation) -> float:
    """The area in square pixels: exact for RLE, for polygons the sum over the parts."""
    if isinstance(segmentation, dict):
        return float(rle.area(segmentation))
    total = 0.0
    for polygon in segmentation:
        x, y = (polygon - polygon[0]).T
        total += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return total


def _parse_polygon(part: object, index: int, size: Size) -> Polygon:
    """One part as ``float64 [K, 2]``."""
    where = f"polygon {index}"
    if not isinstance(part, list):
        raise SegmentationError(f"{where} must be a list [x1, y1, x2, y2, ...], got {part!r:.40}")
    try:
        flat = np.asarray(part)
    except ValueError as error:
        raise SegmentationError(f"{where} is not a flat list of numbers") from error
    if flat.ndim != 1 or (flat.size and flat.dtype.kind not in "iuf"):
        raise SegmentationError(f"{where} is not a flat list of numbers")
    if len(flat) % 2:
        raise SegmentationError(f"{where} has {len(flat)} values, an odd number")
    polygon = flat.astype(np.float64).reshape(-1, 2)
    if len(polygon) < 3:
        return polygon
    low, high = float(polygon.min()), float(polygon.max())
    if not np.isfinite(low + high):
        raise SegmentationError(f"{where} has a coordinate that is not finite")
    if max(-low, high) > _MAX_COORDINATE:
        raise SegmentationError(f"{where} has the coordinate {max(low, high, key=abs):g}")
    # Rasterising takes memory for every pixel an edge passes, inside the image or not.
    limit = 4 * size[0] * size[1] + 2**16
    if len(polygon) * (high - low) > limit:
        edges = np.abs(polygon - np.roll(polygon, -1, axis=0)).max(axis=1)
        if edges.sum() > limit:
            raise SegmentationError(
                f"{where} has an outline of {edges.sum():g} pixels on an image of "
                f"{size[1]} x {size[0]}; are its coordinates in pixels of this image?"
            )
    return polygon


def _parse_rle(value: dict[str, Any], size: Size) -> RLE:
    if value.get("size") != list(size):
        raise SegmentationError(
            f"RLE size {value.get('size')!r:.40} is not the image's [height, width] {list(size)}"
        )
    counts = value.get("counts")
    if isinstance(counts, list):
        runs = np.asarray(counts) if all(type(c) is int for c in counts) else None
        if runs is None or (runs.size and runs.dtype.kind != "i"):
            raise SegmentationError("RLE counts must be integers of less than 64 bits")
    elif isinstance(counts, str | bytes):
        try:
            runs = rle.decode_counts(counts)
        except ValueError as error:
            raise SegmentationError(str(error)) from None
    else:
        raise SegmentationError(
            f"RLE counts must be a list or a string, got a {type(counts).__name__}"
        )
    total = size[0] * size[1]
    if runs.size and runs.min() < 0:
        raise SegmentationError(f"RLE counts hold the negative run {int(runs.min())}")
    # Each run is bounded first, so that the sum of many cannot wrap around.
    if runs.size and runs.max() > total:
        raise SegmentationError(f"RLE counts hold the run {int(runs.max())}, past the image's end")
    if int(runs.sum()) != total:
        raise SegmentationError(
            f"RLE counts add up to {int(runs.sum())}, but {size[0]} x {size[1]} is {total}"
        )
    if isinstance(counts, list):
        return rle.from_uncompressed(counts, size)
    return {
        "size": list(size),
        "counts": counts.encode("ascii") if isinstance(counts, str) else counts,
    }
