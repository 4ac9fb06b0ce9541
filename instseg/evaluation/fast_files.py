"""Annotation and result files straight into columns, for files without fault.

`instseg.evaluation.ground_truth` and `results` look at records one by one and say what is wrong
with which. This reader checks by columns, many times faster, but can only say that something is
unusual: it then returns None, and they have the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from instseg.evaluation.checks import rle_defect
from instseg.evaluation.ground_truth import compressed
from instseg.evaluation.tables import Detections, Floats, Ints, ScoringData, Truth, Vocabulary
from instseg.ops import rle
from instseg.ops.result_columns import result_columns
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE
from instseg.structures.run_lengths import ResultColumns, RunLengths

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
        records = result_columns(np.fromfile(dt, np.uint8))
        return None if records is None else _read(truth, records, iou_types or None)
    # ValidationError is a DecodeError; integers beyond 64 bits overflow.
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):
        return None


def _read(
    truth: _GroundTruth, records: ResultColumns, iou_types: Sequence[str] | None
) -> list[ScoringData] | None:
    vocabulary = _vocabulary(truth)
    if vocabulary is None or not len(records.image):
        return None
    if iou_types is None:
        masks = any(a.segmentation not in _NOTHING for a in truth.annotations)
        iou_types = ("bbox", "segm") if masks and records.masks is not None else ("bbox",)
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
    masks = None
    if iou_type == "segm":
        codes = _object_codes([a.segmentation for a in annotations], sizes[image])
        if codes is None:
            return None
        masks, box = RunLengths.of(codes), np.zeros_like(box)
    return Truth(image, category, box, area, masks, crowd.astype(np.bool_))


def _object_codes(segmentations: list[msgspec.Raw], sizes: Ints) -> list[RLE] | None:
    codes: list[RLE] = [{}] * len(segmentations)
    # Polygons go in one call for all on images of one size, each with the number of its object.
    polygons: dict[Size, tuple[list[int], list[list[float]]]] = {}
    for n, (raw, (height, width)) in enumerate(zip(segmentations, sizes.tolist(), strict=True)):
        if bytes(raw).startswith(b"["):
            shapes = msgspec.json.decode(raw, type=list[list[float]])
            owners, others = polygons.setdefault((height, width), ([], []))
            owners.extend([n] * len(shapes))
            others.extend(shapes)
        else:
            code = _stated_code(raw, (height, width))
            if code is None:
                return None
            codes[n] = code
    for size, (owners, shapes) in polygons.items():
        if not _are_polygons(shapes, size):
            return None
        parts = rle.from_many_polygons(shapes, size)
        for n, own in groupby(zip(owners, parts, strict=True), key=itemgetter(0)):
            of_object = [part for _, part in own]
            codes[n] = of_object[0] if len(of_object) == 1 else rle.merge(of_object)
    return codes if all(codes) else None


def _stated_code(raw: msgspec.Raw, size: Size) -> RLE | None:
    """Run lengths as they stand in the file; None if there are none, or unsound ones."""
    segmentation: Any = None if raw in _NOTHING else msgspec.json.decode(raw)
    if not isinstance(segmentation, dict) or rle_defect(segmentation, size):
        return None
    code = compressed(segmentation, size)
    return {"size": code["size"], "counts": code["counts"].encode()}


def _are_polygons(shapes: list[list[float]], size: Size) -> bool:
    """See `polygons_defect`; JSON's numbers are finite."""
    lengths = np.fromiter(map(len, shapes), np.int64, len(shapes))
    if (lengths < 6).any() or (lengths % 2).any():
        return False
    corners = np.fromiter(chain.from_iterable(shapes), np.float64, int(lengths.sum()))
    limits = np.array(size[::-1])
    corners = corners.reshape(-1, 2)
    return bool((corners >= -limits).all() and (corners <= 2 * limits).all())


def _detections(
    records: ResultColumns, vocabulary: Vocabulary, sizes: Ints, iou_type: str
) -> Detections | None:
    image = _positions(records.image, vocabulary.images)
    category = _positions(records.category, vocabulary.categories)
    score, box, masks = records.score, records.box, records.masks
    if image is None or category is None or not np.isfinite(score).all():
        return None
    if box is not None and not _are_boxes(box):
        return None
    if iou_type == "bbox":
        if box is None:
            return None
        return Detections(image, category, box, box[:, 2] * box[:, 3], None, score)
    if masks is None or (masks.size != sizes[image]).any():
        return None
    area = rle.areas(masks)
    if (area < 0).any():
        return None
    no_boxes = np.zeros((len(score), 4))
    return Detections(image, category, no_boxes, area.astype(np.float64), masks, score)


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _positions(ids: Ints, known: Ints) -> Ints | None:
    """Where the ids are among the known ones; None if any is not."""
    place = np.searchsorted(known, ids)
    inside = np.minimum(place, len(known) - 1)
    return inside if (known[inside] == ids).all() else None


def _are_boxes(box: Floats) -> bool:
    return bool(np.isfinite(box).all() and (box[:, 2:] >= 0).all())
