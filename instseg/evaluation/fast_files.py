"""Annotation and result files straight into columns, for files without fault.

`instseg.evaluation.ground_truth` and `results` look at records one by one and say what is wrong
with which. This reader checks by columns, many times faster, but can only say that something is
unusual: it then returns None, and they have the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from instseg.evaluation.checks import rle_defect
from instseg.evaluation.ground_truth import compressed
from instseg.evaluation.tables import Detections, Floats, Ints, ScoringData, Truth, Vocabulary
from instseg.ops import rle
from instseg.structures.masks import RLE

Box = tuple[float, float, float, float]


class _Image(msgspec.Struct, gc=False):
    id: int
    height: int | None = None
    width: int | None = None


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: Box
    area: float
    iscrowd: int
    segmentation: msgspec.Raw = msgspec.Raw(b"")


class _GroundTruth(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Code(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str


class _Record(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    score: float
    bbox: Box | None = None
    segmentation: _Code | None = None


def read_fast(gt: Path, dt: Path, iou_types: Sequence[str] | None) -> list[ScoringData] | None:
    """Read both files, if there is nothing unusual about them.

    Args:
        gt: COCO annotations.
        dt: COCO results.
        iou_types: some of "bbox" and "segm"; None takes boxes, and masks if both files have them.

    Returns:
        What is to be scored for each IoU type; None if any record is not as COCO's own files have
        it, or a file is empty.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        truth = msgspec.json.decode(gt.read_bytes(), type=_GroundTruth)
        records = msgspec.json.decode(dt.read_bytes(), type=list[_Record])
        return _read(truth, records, iou_types or None)
    # ValidationError is a DecodeError; integers beyond 64 bits overflow.
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        return None


def _read(
    truth: _GroundTruth, records: list[_Record], iou_types: Sequence[str] | None
) -> list[ScoringData] | None:
    vocabulary = _vocabulary(truth)
    if vocabulary is None or not records:
        return None
    if iou_types is None:
        masks = any(a.segmentation not in _NOTHING for a in truth.annotations)
        both = masks and any(r.segmentation is not None for r in records)
        iou_types = ("bbox", "segm") if both else ("bbox",)
    names = [c.name for c in sorted(truth.categories, key=lambda c: c.id)]
    sizes = _sizes(truth, vocabulary)
    if "segm" in iou_types and (sizes == 0).any():
        return None
    data = []
    for iou_type in iou_types:
        objects = _truth(truth, vocabulary, sizes, iou_type)
        found = _detections(records, vocabulary, sizes, iou_type)
        if objects is None or found is None:
            return None
        data.append(ScoringData(iou_type, vocabulary, names, objects, found))
    return data


_NOTHING = (msgspec.Raw(b""), msgspec.Raw(b"[]"), msgspec.Raw(b"null"))


def _vocabulary(truth: _GroundTruth) -> Vocabulary | None:
    lists = truth.images, truth.categories, truth.annotations
    ids = [_ints([r.id for r in records]) for records in lists]
    unusual = (
        not truth.images
        or not truth.categories
        or any(len(np.unique(i)) < len(i) or i.min(initial=0) < 0 for i in ids)
        or len({c.name for c in truth.categories}) < len(truth.categories)
        or not all(_is_size(i.height, i.width) for i in truth.images)
    )
    return None if unusual else Vocabulary(np.sort(ids[0]), np.sort(ids[1]))


def _is_size(height: int | None, width: int | None) -> bool:
    if height is None or width is None:
        return height is width
    return height > 0 and width > 0 and height * width < 2**31


def _sizes(truth: _GroundTruth, vocabulary: Vocabulary) -> Ints:
    """``int64 [images, 2]``: height and width in order of id; 0 where they are not given."""
    sizes = np.zeros((len(vocabulary.images), 2), np.int64)
    place = np.searchsorted(vocabulary.images, [i.id for i in truth.images])
    sizes[place] = [(i.height or 0, i.width or 0) for i in truth.images]
    return sizes


def _truth(truth: _GroundTruth, vocabulary: Vocabulary, sizes: Ints, iou_type: str) -> Truth | None:
    annotations = truth.annotations
    image = _positions(_ints([a.image_id for a in annotations]), vocabulary.images)
    category = _positions(_ints([a.category_id for a in annotations]), vocabulary.categories)
    box = np.array([a.bbox for a in annotations], dtype=np.float64).reshape(-1, 4)
    area = np.array([a.area for a in annotations], dtype=np.float64)
    crowd = _ints([a.iscrowd for a in annotations])
    if image is None or category is None or not _are_boxes(box):
        return None
    if not np.isfinite(area).all() or (area < 0).any() or not np.isin(crowd, (0, 1)).all():
        return None
    masks: list[RLE] | None = None
    if iou_type == "segm":
        codes = [
            _object_code(a.segmentation, (int(h), int(w)))
            for a, (h, w) in zip(annotations, sizes[image], strict=True)
        ]
        masks = [code for code in codes if code is not None]
        if not annotations or len(masks) < len(codes):
            return None
        box = np.zeros_like(box)
    return Truth(image, category, box, area, masks, crowd.astype(np.bool_))


def _object_code(raw: msgspec.Raw, size: tuple[int, int]) -> RLE | None:
    if raw in _NOTHING:
        return None
    if bytes(raw).startswith(b"["):
        polygons = msgspec.json.decode(raw, type=list[list[float]])
        if not polygons or not all(_is_polygon(p, size) for p in polygons):
            return None
        return rle.from_polygons([np.array(p).reshape(-1, 2) for p in polygons], size)
    segmentation: Any = msgspec.json.decode(raw)
    if not isinstance(segmentation, dict) or rle_defect(segmentation, size):
        return None
    code = compressed(segmentation, size)
    return {"size": code["size"], "counts": code["counts"].encode()}


def _is_polygon(corners: list[float], size: tuple[int, int]) -> bool:
    """See `polygons_defect`; JSON's numbers are finite."""
    if len(corners) < 6 or len(corners) % 2:
        return False
    (height, width), xs, ys = size, corners[::2], corners[1::2]
    across = -width <= min(xs) and max(xs) <= 2 * width
    return across and -height <= min(ys) and max(ys) <= 2 * height


def _detections(
    records: list[_Record], vocabulary: Vocabulary, sizes: Ints, iou_type: str
) -> Detections | None:
    image = _positions(_ints([r.image_id for r in records]), vocabulary.images)
    category = _positions(_ints([r.category_id for r in records]), vocabulary.categories)
    score = np.array([r.score for r in records], dtype=np.float64)
    boxes = [r.bbox for r in records if r.bbox is not None]
    box = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    if image is None or category is None or not np.isfinite(score).all() or not _are_boxes(box):
        return None
    if iou_type == "bbox":
        if len(boxes) < len(records):
            return None
        return Detections(image, category, box, box[:, 2] * box[:, 3], None, score)
    codes = [r.segmentation for r in records if r.segmentation is not None]
    if len(codes) < len(records):
        return None
    wanted = sizes[image]
    counts = [c.counts.encode() for c in codes]
    given = np.array([c.size for c in codes], dtype=np.int64)
    if (given != wanted).any() or not rle.fills_image(counts, wanted.prod(axis=1)).all():
        return None
    masks = [{"size": c.size, "counts": n} for c, n in zip(codes, counts, strict=True)]
    no_boxes = np.zeros((len(records), 4))
    return Detections(image, category, no_boxes, rle.areas(masks), masks, score)


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _positions(ids: Ints, known: Ints) -> Ints | None:
    """Where the ids are among the known ones; None if any is not."""
    place = np.searchsorted(known, ids)
    inside = np.minimum(place, len(known) - 1)
    return inside if (known[inside] == ids).all() else None


def _are_boxes(box: Floats) -> bool:
    return bool(np.isfinite(box).all() and (box[:, 2:] >= 0).all())
