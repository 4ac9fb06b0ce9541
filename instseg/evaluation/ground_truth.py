"""COCO ground truth for scoring: read, checked, completed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from instseg.evaluation.checks import (
    boundary_defect,
    box_defect,
    id_defect,
    is_finite,
    is_int,
    polygons_defect,
    raise_defects,
    rle_defect,
)
from instseg.evaluation.json_file import read_json
from instseg.ops import rle
from instseg.structures.geometry import Size

logger = logging.getLogger(__name__)


class GroundTruthError(ValueError):
    """Ground truth that cannot be scored against; the message names file and records."""


def load_ground_truth(path: Path, iou_types: Sequence[str]) -> dict[str, Any]:
    """Read a COCO annotation file and prepare it: see `prepare_ground_truth`."""
    return prepare_ground_truth(read_json(path, GroundTruthError), iou_types, source=str(path))


def prepare_ground_truth(
    ground_truth: Any, iou_types: Sequence[str], *, source: str = "ground truth"
) -> dict[str, Any]:
    """Check what scoring reads and copy it, with missing ``area`` and ``iscrowd`` filled in.

    The area is that of the mask, or of the box where there is no mask. Annotations are numbered
    from 1 again, because COCO's own scorer takes one whose id is 0 for no match.

    Args:
        ground_truth: a COCO dictionary. It is not changed.
        iou_types: "bbox", "segm" or both: which of the two every annotation must have. Besides
            "segm", "boundary": no mask is too large for its boundary to be made.
        source: what error messages call it, as a rule the file.

    Returns:
        A COCO dictionary of ``images`` (id, height, width, file_name), ``annotations`` and
        ``categories``.

    Raises:
        GroundTruthError: a list or key is missing, an id is unknown or used twice, a box or mask is
            malformed, or masks are asked of annotations without any.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, dict) or not isinstance(ground_truth.get(key), list):
            raise GroundTruthError(
                f"{source}: the key {key!r} with a list is missing; this is no COCO annotation file"
            )
    images, categories = ground_truth["images"], ground_truth["categories"]
    annotations = ground_truth["annotations"]
    _check_ids(images, "images", source)
    _check_ids(categories, "categories", source)
    _check_ids(annotations, "annotations", source, may_be_empty=True)
    _check_images(images, iou_types, source)
    _check_category_names(categories, source)
    if "segm" in iou_types and annotations and not has_segmentations(annotations):
        raise GroundTruthError(
            f"{source}: no annotation has a segmentation, so masks cannot be scored; ask for the "
            "IoU type 'bbox' alone"
        )
    _check_annotations(ground_truth, iou_types, source)
    return {
        "images": [
            {k: i[k] for k in ("id", "height", "width", "file_name") if i.get(k) is not None}
            for i in images
        ],
        "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        "annotations": _completed(ground_truth, iou_types, source),
    }


def image_sizes(ground_truth: dict[str, Any]) -> dict[int, Size | None]:
    """(height, width) by image id; None for an image that does not give it."""
    return {i["id"]: _size(i) for i in ground_truth["images"]}


def has_segmentations(records: object) -> bool:
    """Whether any of a list of annotations or results has a mask; ``[]`` is none."""
    return isinstance(records, list) and any(
        isinstance(r, dict) and r.get("segmentation") for r in records
    )


def _size(image: dict[str, Any]) -> Size | None:
    height, width = image.get("height"), image.get("width")
    return None if height is None or width is None else (height, width)


def _check_ids(records: list[Any], key: str, source: str, *, may_be_empty: bool = False) -> None:
    if not records and not may_be_empty:
        raise GroundTruthError(f"{source}: the list {key!r} is empty; there is nothing to score")
    defects, seen = [], set()
    for index, record in enumerate(records):
        value = record.get("id") if isinstance(record, dict) else None
        if not is_int(value) or value < 0:
            defects.append(f"{key}[{index}]: key 'id' must be an integer >= 0, got {short(value)}")
        elif value in seen:
            defects.append(f"{key}[{index}]: the id {value} is used twice")
        else:
            seen.add(value)
    raise_defects(GroundTruthError, source, defects, len(records), key)


def _check_images(images: list[dict[str, Any]], iou_types: Sequence[str], source: str) -> None:
    defects = []
    for image in images:
        if _size(image) is None:
            if "segm" in iou_types:
                defects.append(f"image {image['id']}: 'height' and 'width' are needed for masks")
        # Run lengths are 32-bit numbers in every implementation.
        elif not all(is_int(v) and v > 0 for v in (image["height"], image["width"])) or (
            image["height"] * image["width"] >= 2**31
        ):
            defects.append(
                f"image {image['id']}: height {short(image['height'])} and width "
                f"{short(image['width'])} must be positive integers of a product below 2^31"
            )
    raise_defects(GroundTruthError, source, defects, len(images), "images")


def _check_category_names(categories: list[dict[str, Any]], source: str) -> None:
    defects, seen = [], set()
    for category in categories:
        name = category.get("name")
        if not isinstance(name, str):
            defects.append(f"category {category['id']}: key 'name' must be text, got {short(name)}")
        elif name in seen:
            defects.append(f"category {category['id']}: the name {name!r} is used twice")
        else:
            seen.add(name)
    raise_defects(GroundTruthError, source, defects, len(categories), "categories")


def _check_annotations(ground_truth: dict[str, Any], iou_types: Sequence[str], source: str) -> None:
    sizes = image_sizes(ground_truth)
    categories = {c["id"] for c in ground_truth["categories"]}
    defects = []
    for annotation in ground_truth["annotations"]:
        defect = (
            id_defect(annotation, "image_id", sizes, "'images'")
            or id_defect(annotation, "category_id", categories, "'categories'")
            or _shape_defect(annotation, sizes, iou_types)
            or _optional_defect(annotation)
        )
        if defect:
            defects.append(f"annotation {annotation['id']}: {defect}")
    total = len(ground_truth["annotations"])
    raise_defects(GroundTruthError, source, defects, total, "annotations")


def _shape_defect(
    annotation: dict[str, Any], sizes: dict[int, Size | None], iou_types: Sequence[str]
) -> str | None:
    if "bbox" in iou_types or "bbox" in annotation:
        if "bbox" not in annotation:
            return "key 'bbox' is missing"
        if defect := box_defect(annotation["bbox"]):
            return defect
    segmentation, size = annotation.get("segmentation"), sizes[annotation["image_id"]]
    if "segm" in iou_types and not segmentation:
        return "key 'segmentation' is missing or empty"
    needed = "segm" in iou_types or "area" not in annotation
    if not needed or not segmentation or size is None:
        return None
    if isinstance(segmentation, dict):
        defect = rle_defect(segmentation, size)
    elif isinstance(segmentation, list):
        defect = polygons_defect(segmentation, size)
    else:
        given = short(segmentation)
        return f"key 'segmentation' must be polygons or a run-length code, got {given}"
    if defect is None and "boundary" in iou_types:
        return boundary_defect(segmentation, size)
    return defect


def _optional_defect(annotation: dict[str, Any]) -> str | None:
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"key 'iscrowd' must be 0 or 1, got {short(annotation['iscrowd'])}"
    area = annotation.get("area", 0)
    if not is_finite(area) or area < 0:
        return f"key 'area' must be a finite number >= 0, got {short(area)}"
    return None


def _completed(
    ground_truth: dict[str, Any], iou_types: Sequence[str], source: str
) -> list[dict[str, Any]]:
    annotations, sizes = ground_truth["annotations"], image_sizes(ground_truth)
    areas = sum("area" not in a for a in annotations)
    crowds = sum("iscrowd" not in a for a in annotations)
    if areas or crowds:
        logger.warning(
            "%s: filled in the missing 'area' of %d and 'iscrowd' of %d annotations, of %d",
            source,
            areas,
            crowds,
            len(annotations),
        )
    return [
        {"id": number, **_copy(a, sizes[a["image_id"]], iou_types)}
        for number, a in enumerate(annotations, start=1)
    ]


def _copy(
    annotation: dict[str, Any], size: Size | None, iou_types: Sequence[str]
) -> dict[str, Any]:
    kept = ("image_id", "category_id", "bbox")
    copy: dict[str, Any] = {k: annotation[k] for k in kept if k in annotation}
    copy["iscrowd"] = int(annotation.get("iscrowd", 0))
    copy["area"] = annotation["area"] if "area" in annotation else _area(annotation, size)
    if "segm" in iou_types and size is not None:
        given = annotation["segmentation"]
        copy["segmentation"] = compressed(given, size) if isinstance(given, dict) else given
    return copy


def _area(annotation: dict[str, Any], size: Size | None) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation or size is None:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, dict):
        return float(rle.area(compressed(segmentation, size)))
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
    return float(rle.area(rle.from_polygons(polygons, size)))


def compressed(code: dict[str, Any], size: Size) -> dict[str, Any]:
    """A checked run-length code of any form as JSON holds it: counts compressed, as text."""
    counts = code["counts"]
    if isinstance(counts, list):
        counts = rle.from_uncompressed(counts, size)["counts"]
    return {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts}
