"""The rules a COCO record must keep, one place for training and for the checker.

Nothing here opens a file: the rules see one record at a time. `index.screen` applies them to a
whole data set and adds the rules between records; `check.check_coco` adds what only pixels tell.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np

from instseg.data.coco import SegmentationError, parse_segmentation
from instseg.ops import rle
from instseg.structures.geometry import MAX_PIXELS, Size
from instseg.structures.masks import Polygon

BOX_TOLERANCE = 1.0
"""Pixels a box may reach past the image without a warning: rounding and inclusive corners."""


class Severity(enum.Enum):
    """How much a defect matters; members are in falling order."""

    ERROR = "error"
    """The record cannot be used and training leaves it out."""
    WARNING = "warning"
    """The record is used, but is probably not what its author meant."""
    NOTE = "note"
    """Nothing wrong; worth knowing."""


@dataclass(frozen=True)
class Defect:
    """One thing wrong with one record.

    Args:
        code: a short name of the kind, such as ``box-no-area``.
        severity: whether the record can still be used.
        message: what is wrong and, where it is not plain, how to mend it.
        file: the annotation file.
        image_id: the image concerned; None where the defect is of no image, or its id is unusable.
        annotation_id: the annotation concerned; None likewise.
    """

    code: str
    severity: Severity
    message: str
    file: str
    image_id: int | None = None
    annotation_id: int | None = None


_Finding = tuple[str, Severity, str]


def has_errors(defects: Iterable[Defect]) -> bool:
    """Whether any of the defects is an error."""
    return any(defect.severity is Severity.ERROR for defect in defects)


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value can be an id: an integer from 0 that fits 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def owner(annotation: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(image id, annotation id) of an annotation, None for what is no id."""
    image_id, annotation_id = annotation.get("image_id"), annotation.get("id")
    return image_id if is_id(image_id) else None, annotation_id if is_id(annotation_id) else None


def category_defects(category: object, where: str, *, file: str) -> list[Defect]:
    """Defects of one category record.

    Args:
        category: the record.
        where: its place in the file, such as ``categories[3]``.
        file: the annotation file's name.
    """
    return [Defect(*f, file) for f in _category_findings(category, where)]


def image_record_defects(image: object, where: str, *, file: str) -> list[Defect]:
    """Defects of one image record, as far as they show without its file.

    Args:
        image: the record.
        where: its place in the file, such as ``images[3]``.
        file: the annotation file's name.
    """
    image_id = image["id"] if isinstance(image, dict) and is_id(image.get("id")) else None
    return [Defect(*f, file, image_id) for f in _image_findings(image, where)]


def annotation_defects(
    annotation: object,
    where: str,
    *,
    sizes: Mapping[int, Size | None],
    categories: Collection[int],
    file: str,
    need_masks: bool = False,
) -> list[Defect]:
    """Defects of one annotation, as far as they show without decoding its mask.

    Args:
        annotation: the record.
        where: its place in the file, such as ``annotations[3]``.
        sizes: (height, width) for each image id; None where that image has no usable size, which
            leaves out the rules that need it.
        categories: the ids of the categories there are.
        file: the annotation file's name.
        need_masks: whether masks are used; without, they are not looked at.
    """
    ids = owner(annotation) if isinstance(annotation, dict) else (None, None)
    findings = _annotation_findings(annotation, where, sizes, categories, need_masks)
    return [Defect(*f, file, *ids) for f in findings]


def clipped_box(bbox: list[float], size: Size) -> tuple[float, float, float, float]:
    """COCO's ``[x, y, width, height]`` as (x1, y1, x2, y2) within an image of ``size``."""
    x, y, w, h = bbox
    height, width = size
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def has_mask(annotation: Mapping[str, Any]) -> bool:
    """Whether there is a mask at all; box-only sets write null, an empty list or nothing."""
    return annotation.get("segmentation") not in (None, [], "")


def _category_findings(category: object, where: str) -> Iterator[_Finding]:
    if not isinstance(category, dict):
        yield _error("bad-type", f"{where} must be an object, got {category!r:.40}")
        return
    yield from _id_findings(category, "id", where)
    name = category.get("name")
    if "name" not in category:
        yield _error("missing-key", f"{where} has no 'name'")
    elif not _is_text(name):
        yield _error("bad-type", f"{where}: 'name' must be a text, got {name!r:.40}")


def _image_findings(image: object, where: str) -> Iterator[_Finding]:
    if not isinstance(image, dict):
        yield _error("bad-type", f"{where} must be an object, got {image!r:.40}")
        return
    yield from _id_findings(image, "id", where)
    yield from _file_name_findings(image, where)
    sides = []
    for key in ("height", "width"):
        side = image.get(key)
        if key not in image:
            yield _error("missing-key", f"{where} has no '{key}'")
        elif type(side) is not int:
            yield _error("bad-type", f"{where}: '{key}' must be an integer, got {side!r:.40}")
        elif side <= 0:
            yield _error("image-no-area", f"{where}: '{key}' is {side!s:.40}")
        else:
            sides.append(side)
    if len(sides) == 2 and sides[0] * sides[1] > MAX_PIXELS:
        text = f"{where}: 'width' x 'height' is over {MAX_PIXELS} pixels; cut the image into tiles"
        yield _error("image-too-large", text)


def _file_name_findings(image: Mapping[str, Any], where: str) -> Iterator[_Finding]:
    name = image.get("file_name")
    if "file_name" not in image:
        yield _error("missing-key", f"{where} has no 'file_name'")
    elif not _is_text(name) or "\0" in name:
        yield _error("bad-type", f"{where}: 'file_name' must be a path, got {name!r:.40}")
    elif any(  # a Windows path is refused on every system
        ".." in path.parts or path.anchor for path in (PurePosixPath(name), PureWindowsPath(name))
    ):
        yield _error(
            "path-leaves-root",
            f"{where}: file_name {name!r} must be relative to the image folder, without '..'",
        )


def _annotation_findings(
    annotation: object,
    where: str,
    sizes: Mapping[int, Size | None],
    categories: Collection[int],
    need_masks: bool,
) -> Iterator[_Finding]:
    if not isinstance(annotation, dict):
        yield _error("bad-type", f"{where} must be an object, got {annotation!r:.40}")
        return
    for key in ("id", "image_id", "category_id"):
        yield from _id_findings(annotation, key, where)
    if annotation.get("id") == 0:
        yield _warning(
            "annotation-id-zero",
            "pycocotools counts an object with id 0 as never found; number annotations from 1",
        )
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if is_id(image_id) and image_id not in sizes:
        yield _error("unknown-image", f"there is no image {image_id}")
    if is_id(category_id) and category_id not in categories:
        yield _error("unknown-category", f"there is no usable category {category_id}")

    size = sizes.get(image_id) if is_id(image_id) else None
    yield from _box_findings(annotation, where, size)
    yield from _crowd_and_area_findings(annotation)
    if need_masks:
        yield from _mask_findings(annotation, size)


def _box_findings(
    annotation: Mapping[str, Any], where: str, size: Size | None
) -> Iterator[_Finding]:
    if "bbox" not in annotation:
        yield _error("missing-key", f"{where} has no 'bbox'")
        return
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or any(type(v) not in (int, float) for v in box):
        text = f"{where}: 'bbox' must be four numbers [x, y, width, height], got {box!r:.60}"
        yield _error("bad-type", text)
        return
    if not all(_is_finite(v) for v in box):
        yield _error("box-not-finite", f"the box is {box!r:.80}")
        return
    x, y, w, h = (float(v) for v in box)
    if w <= 0 or h <= 0:
        yield _error("box-no-area", f"the box is {w:g} wide and {h:g} high")
        return
    if size is None:
        return
    clipped = clipped_box([x, y, w, h], size)
    place = f"the box {x:g}, {y:g} to {x + w:g}, {y + h:g}"
    image = f"the image of {size[1]} x {size[0]}"
    if clipped[0] >= size[1] or clipped[1] >= size[0] or clipped[2] <= 0 or clipped[3] <= 0:
        yield _error("box-outside", f"{place} lies outside {image}")
        return
    x1, y1, x2, y2 = np.array(clipped, dtype=np.float32)
    if x2 <= x1 or y2 <= y1:
        yield _error("box-no-area", f"{place} has no area in 32-bit numbers")
    elif max(-x, -y, x + w - size[1], y + h - size[0]) > BOX_TOLERANCE:
        yield _warning("box-partly-outside", f"{place} reaches out of {image}; it is clipped")


def _crowd_and_area_findings(annotation: Mapping[str, Any]) -> Iterator[_Finding]:
    crowd = annotation.get("iscrowd")
    if crowd is None:
        yield _warning("missing-iscrowd", "there is no 'iscrowd'; 0 is assumed")
    elif not isinstance(crowd, int | float) or crowd not in (0, 1):
        yield _error("bad-type", f"'iscrowd' must be 0 or 1, got {crowd!r:.40}")
    elif crowd and isinstance(annotation.get("segmentation"), list) and has_mask(annotation):
        yield _warning(
            "crowd-with-polygon", "a crowd region is written as RLE as a rule; is iscrowd meant?"
        )
    area = annotation.get("area")
    if area is None:
        yield _warning("missing-area", "there is no 'area'; it is computed")
    elif not is_area(area):
        yield _warning("bad-area", f"'area' must be a number over 0, got {area!r:.40}; computed")


def _mask_findings(annotation: Mapping[str, Any], size: Size | None) -> Iterator[_Finding]:
    if not has_mask(annotation):
        yield _error("mask-missing", "there is no 'segmentation'")
        return
    if size is None:
        return
    value = annotation["segmentation"]
    try:
        segmentation = parse_segmentation(value, size)
    except SegmentationError as error:
        yield _error("mask-malformed", str(error))
        return
    if isinstance(segmentation, dict):
        if rle.area(segmentation) == 0:
            yield _error("mask-empty", "the mask has no pixel")
    elif not any(_meets(polygon, size) for polygon in segmentation):
        yield _error("mask-empty", "the polygons lie outside the image")
    elif len(segmentation) < len(value):
        dropped = len(value) - len(segmentation)
        text = f"{dropped} of {len(value)} polygons have fewer than three points; left out"
        yield _warning("mask-part-degenerate", text)


def _meets(polygon: Polygon, size: Size) -> bool:
    """Whether a polygon's bounds and the image share an area."""
    height, width = size
    x, y = polygon[0]
    if 0 < x < width and 0 < y < height:  # nearly always, and far quicker than the whole
        return True
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    return bool(right > 0 and bottom > 0 and left < width and top < height)


def _id_findings(record: Mapping[str, Any], key: str, where: str) -> Iterator[_Finding]:
    if key not in record:
        yield _error("missing-key", f"{where} has no '{key}'")
    elif not is_id(record[key]):
        text = f"{where}: '{key}' must be an integer from 0 up, got {record[key]!r:.40}"
        yield _error("bad-type", text)


def is_area(value: Any) -> bool:
    """Whether a value can stand as ``area``: a finite number over 0."""
    return type(value) in (int, float) and _is_finite(value) and value > 0


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a text that can be written: JSON may hold halves of UTF-16 characters."""
    if not isinstance(value, str) or not value:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _error(code: str, message: str) -> _Finding:
    return code, Severity.ERROR, message


def _warning(code: str, message: str) -> _Finding:
    return code, Severity.WARNING, message
