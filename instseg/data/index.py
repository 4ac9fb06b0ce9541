"""From a COCO dictionary to the records a data set serves, leaving out what cannot be used."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.data.coco import (
    AnnotationError,
    SegmentationError,
    category_ids,
    parse_segmentation,
    segmentation_area,
)
from instseg.data.defects import (
    Defect,
    Severity,
    annotation_defects,
    category_defects,
    clipped_box,
    has_errors,
    has_mask,
    image_record_defects,
    is_area,
    is_id,
    owner,
)
from instseg.data.tiff import page_name, split_page
from instseg.structures.geometry import Size
from instseg.structures.masks import Segmentation

_SHOWN = 5  # ids listed before an ellipsis


@dataclass
class Record:
    """One image and its N objects, before a pixel is read.

    Args:
        image_id: the id in the annotation file.
        path: the image file, absolute; its end may name a page (``stack.tif#page=0``).
        size: (height, width) as the annotation file says.
        boxes: ``float32 [N, 4]``, absolute x1 y1 x2 y2 within the image.
        labels: ``int64 [N]``, contiguous from 0 in the order of sorted category ids.
        is_crowd: ``bool [N]``.
        annotation_ids: ``int64 [N]``, the ids in the annotation file.
        segmentations: N masks in coordinates of the image; None where masks are not needed.
    """

    image_id: int
    path: Path
    size: Size
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    annotation_ids: npt.NDArray[np.int64]
    segmentations: list[Segmentation] | None


@dataclass
class CocoIndex:
    """The usable part of an annotation file.

    Args:
        records: one for each usable image, with or without objects, in the order of the file.
        categories: ``{"id", "name"}``, sorted by id; label i is the i-th.
        defects: everything found, errors and others.
        coco: the ground truth of `records`, fit for evaluation: COCO's own keys alone, ``area`` and
            ``iscrowd`` filled in, boxes as annotated (not clipped).
        total_images: number of images in the file.
        total_annotations: number of annotations in the file.
    """

    records: list[Record]
    categories: list[dict[str, Any]]
    defects: list[Defect]
    coco: dict[str, Any]
    total_images: int
    total_annotations: int

    @property
    def class_names(self) -> list[str]:
        """The name of each label."""
        return [category["name"] for category in self.categories]

    @property
    def category_ids(self) -> list[int]:
        """The category id of each label."""
        return [category["id"] for category in self.categories]

    def summary(self) -> str:
        """What is left out and why, in one sentence."""
        kept = len(self.coco["annotations"])
        gone = self.total_annotations - kept
        gone_images = self.total_images - len(self.records)
        reasons = _reasons(self.defects)
        if not reasons:
            return (
                f"{len(self.records)} images, {kept} annotations, "
                f"{len(self.categories)} classes; none left out"
            )
        return (
            f"left out {gone} of {self.total_annotations} annotations and {gone_images} of "
            f"{self.total_images} images (their annotations with them): {reasons}; "
            "run `instseg dataset check` for the whole list"
        )


@dataclass(frozen=True)
class Screened:
    """The usable records of a COCO dictionary, by all rules that need no image file.

    Args:
        coco: as `CocoIndex.coco`, its categories sorted by id.
        defects: everything found.
    """

    coco: dict[str, list[dict[str, Any]]]
    defects: list[Defect]


def build_index(
    coco: Mapping[str, Any], image_root: Path, *, source: str, need_masks: bool = False
) -> CocoIndex:
    """Index a dictionary from `coco.load_coco`; masks stay polygons or RLE.

    Args:
        coco: the annotations; they are not changed.
        image_root: the folder that ``file_name`` is relative to; no image outside it is read.
        source: the annotation file's name, for messages.
        need_masks: whether masks are used. If so, an annotation without one is left out; if not,
            masks are neither checked nor kept.

    Raises:
        FileNotFoundError: there is no folder ``image_root``.
        AnnotationError: no image or no category can be used; the message says why.
    """
    screened = screen(coco, source=source, need_masks=need_masks)
    paths, file_defects = locate_images(screened.coco["images"], image_root, source=source)
    defects = screened.defects + file_defects
    images = [image for image in screened.coco["images"] if image["id"] in paths]
    categories = screened.coco["categories"]
    if not images or not categories:
        what = "image" if not images else "category"
        why = _reasons(defects) or "the file lists none"
        raise AnnotationError(f"{source}: no {what} can be used: {why}")

    objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in paths}
    for annotation in screened.coco["annotations"]:
        if annotation["image_id"] in objects:
            objects[annotation["image_id"]].append(annotation)
    kept = [a for a in screened.coco["annotations"] if a["image_id"] in objects]
    labels = {category_id: i for i, category_id in enumerate(category_ids(screened.coco))}
    return CocoIndex(
        records=[
            _record(image, paths[image["id"]], objects[image["id"]], labels, need_masks)
            for image in images
        ],
        categories=categories,
        defects=defects,
        coco={"images": images, "annotations": kept, "categories": categories},
        total_images=len(coco["images"]),
        total_annotations=len(coco["annotations"]),
    )


def screen(coco: Mapping[str, Any], *, source: str, need_masks: bool = False) -> Screened:
    """Apply every rule that needs no image file; arguments as `build_index`."""
    categories, defects = _screen_categories(coco["categories"], source)
    images, image_defects = _screen_images(coco["images"], source)
    defects += image_defects
    sizes: dict[int, Size | None] = {
        image["id"]: None
        for image in coco["images"]
        if isinstance(image, dict) and is_id(image.get("id"))
    }
    sizes.update({image["id"]: (image["height"], image["width"]) for image in images})
    known = {category["id"] for category in categories}

    annotations = []
    seen: set[int] = set()
    for i, annotation in enumerate(coco["annotations"]):
        found = annotation_defects(
            annotation,
            f"annotations[{i}]",
            sizes=sizes,
            categories=known,
            file=source,
            need_masks=need_masks,
        )
        image_id, identity = owner(annotation) if isinstance(annotation, dict) else (None, None)
        if identity in seen:
            text = f"annotations[{i}] repeats an id, only the first is used; give each its own"
            found.append(
                Defect("duplicate-annotation-id", Severity.ERROR, text, source, image_id, identity)
            )
        elif identity is not None:
            seen.add(identity)
        defects += found
        if not has_errors(found) and (size := sizes[annotation["image_id"]]) is not None:
            annotations.append(_normalised(annotation, size, need_masks))
    return Screened(
        {"images": images, "annotations": annotations, "categories": categories}, defects
    )


def locate_images(
    images: list[dict[str, Any]], image_root: Path, *, source: str
) -> tuple[dict[int, Path], list[Defect]]:
    """The file of each image id, for those that exist under ``image_root``, links followed.

    Of a page of a TIFF (``stack.tif#page=0``) the file is looked for, and the path names the page.

    Raises:
        FileNotFoundError: there is no folder ``image_root``.
    """
    if not image_root.is_dir():
        raise FileNotFoundError(f"{image_root}: there is no such image folder (for {source})")
    root = image_root.resolve()
    paths: dict[int, Path] = {}
    defects = []
    for image in images:
        path, page = split_page(root / image["file_name"])
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            code, text = "image-missing", f"{path}: {getattr(error, 'strerror', None) or error}"
        else:
            if target.is_relative_to(root) and target.is_file():
                named = target if page is None else target.with_name(page_name(target.name, page))
                paths[image["id"]] = named
                continue
            code, text = "image-missing", f"{path} is no file"
            if not target.is_relative_to(root):
                code = "path-leaves-root"
                text = f"{path} is a link to {target}; name the folder it points to as image root"
        defects.append(Defect(code, Severity.ERROR, text, source, image["id"]))
    return paths, defects


def _screen_categories(
    categories: list[Any], source: str
) -> tuple[list[dict[str, Any]], list[Defect]]:
    found = [
        category_defects(category, f"categories[{i}]", file=source)
        for i, category in enumerate(categories)
    ]
    for i, text in _ambiguous_ids(categories, "categories"):
        found[i].append(Defect("duplicate-category-id", Severity.ERROR, text, source))
    kept = [
        {key: category[key] for key in ("id", "name")}
        for category, defects in zip(categories, found, strict=True)
        if not has_errors(defects)
    ]
    kept.sort(key=lambda category: category["id"])
    defects = [defect for group in found for defect in group]
    for name, count in Counter(category["name"] for category in kept).items():
        if count > 1:
            text = f"{count} categories have the name {name!r} and are learnt as different classes"
            defects.append(Defect("duplicate-category-name", Severity.WARNING, text, source))
    ids = [category["id"] for category in kept]
    if ids and ids[-1] - ids[0] + 1 != len(ids):
        text = (
            f"{len(ids)} category ids lie between {ids[0]} and {ids[-1]}; "
            "labels are their ranks, from 0"
        )
        defects.append(Defect("non-contiguous-ids", Severity.NOTE, text, source))
    return kept, defects


def _screen_images(images: list[Any], source: str) -> tuple[list[dict[str, Any]], list[Defect]]:
    found = [
        image_record_defects(image, f"images[{i}]", file=source) for i, image in enumerate(images)
    ]
    for i, text in _ambiguous_ids(images, "images"):
        image_id = images[i]["id"]
        found[i].append(Defect("duplicate-image-id", Severity.ERROR, text, source, image_id))
    kept = []
    first: dict[str, int] = {}
    for image, defects in zip(images, found, strict=True):
        if has_errors(defects):
            continue
        kept.append({key: image[key] for key in ("id", "width", "height", "file_name")})
        twin = first.setdefault(PurePosixPath(image["file_name"]).as_posix(), image["id"])
        if twin != image["id"]:
            text = (
                f"has the file of image {twin} too; the objects of each are background in the other"
            )
            defects.append(
                Defect("duplicate-file-name", Severity.WARNING, text, source, image["id"])
            )
    return kept, [defect for group in found for defect in group]


def _ambiguous_ids(records: list[Any], section: str) -> Iterator[tuple[int, str]]:
    """Positions that must go because an id is given twice, with the reason.

    Of equal copies the first stays. Different records under one id all go: nothing tells which of
    them an annotation means.
    """
    positions: dict[int, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if isinstance(record, dict) and is_id(record.get("id")):
            positions[record["id"]].append(i)
    for identity, group in positions.items():
        if len(group) == 1:
            continue
        places = ", ".join(f"{section}[{i}]" for i in group[:_SHOWN])
        if all(records[i] == records[group[0]] for i in group):
            for i in group[1:]:
                yield i, f"id {identity} is given {len(group)} times, the same each time: {places}"
        else:
            for i in group:
                yield i, f"id {identity} stands for different records: {places}; give each its own"


def _normalised(annotation: dict[str, Any], size: Size, need_masks: bool) -> dict[str, Any]:
    """COCO's own keys alone: scorers refuse a file for the type of a key they do not need."""
    kept = {key: annotation[key] for key in ("id", "image_id", "category_id", "bbox")}
    kept["iscrowd"] = int(annotation.get("iscrowd") or 0)
    area = annotation.get("area")
    kept["area"] = area if is_area(area) else _computed_area(annotation, size)
    if need_masks:
        value = annotation["segmentation"]
        kept["segmentation"] = (
            [part for part in value if len(part) >= 6] if isinstance(value, list) else value
        )
    return kept


def _computed_area(annotation: dict[str, Any], size: Size) -> float:
    """The mask's area where there is a mask, else the box's."""
    x1, y1, x2, y2 = clipped_box(annotation["bbox"], size)
    box_area = (x2 - x1) * (y2 - y1)
    if not has_mask(annotation):
        return box_area
    try:
        return segmentation_area(parse_segmentation(annotation["segmentation"], size)) or box_area
    except SegmentationError:  # reported as a defect where masks are needed
        return box_area


def _record(
    image: dict[str, Any],
    path: Path,
    objects: list[dict[str, Any]],
    labels: dict[int, int],
    need_masks: bool,
) -> Record:
    size = image["height"], image["width"]
    boxes = [clipped_box(a["bbox"], size) for a in objects]
    return Record(
        image_id=image["id"],
        path=path,
        size=size,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array([labels[a["category_id"]] for a in objects], dtype=np.int64),
        is_crowd=np.array([a["iscrowd"] for a in objects], dtype=np.bool_),
        annotation_ids=np.array([a["id"] for a in objects], dtype=np.int64),
        segmentations=[parse_segmentation(a["segmentation"], size) for a in objects]
        if need_masks
        else None,
    )


def _reasons(defects: list[Defect]) -> str:
    """The errors counted by code, each with a few ids."""
    groups: dict[str, list[Defect]] = defaultdict(list)
    for defect in defects:
        if defect.severity is Severity.ERROR:
            groups[defect.code].append(defect)
    parts = []
    for code, group in groups.items():
        annotations = [d.annotation_id for d in group if d.annotation_id is not None]
        images = [d.image_id for d in group if d.annotation_id is None and d.image_id is not None]
        named = [
            f"{noun} {', '.join(map(str, ids[:_SHOWN]))}{', ...' if len(ids) > _SHOWN else ''}"
            for noun, ids in (("annotation", annotations), ("image", images))
            if ids
        ]
        parts.append(f"{len(group)} {code}" + (f" ({'; '.join(named)})" if named else ""))
    return ", ".join(parts)
