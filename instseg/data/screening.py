"""Which records of a COCO dictionary can be used, and what is wrong with the others."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from instseg.data.coco import SegmentationError, parse_segmentation, segmentation_area
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
from instseg.data.shards.index import index_path
from instseg.data.shards.members import split_member
from instseg.data.tiff import page_name, split_page
from instseg.structures.geometry import Size

_SHOWN = 5  # places listed before an ellipsis


@dataclass(frozen=True)
class Screened:
    """The usable records of a COCO dictionary, by all rules that need no image file.

    Args:
        coco: as `index.CocoIndex.coco`, its categories sorted by id.
        defects: everything found.
    """

    coco: dict[str, list[dict[str, Any]]]
    defects: list[Defect]


def screen(coco: Mapping[str, Any], *, source: str, need_masks: bool = False) -> Screened:
    """Apply every rule that needs no image file; arguments as `index.build_index`."""
    head = screen_head(coco, source)
    defects, annotations = list(head.defects), []
    for found, annotation in screen_annotations(coco["annotations"], head, source, need_masks):
        defects += found
        if annotation is not None:
            annotations.append(annotation)
    return Screened(
        {"images": head.images, "annotations": annotations, "categories": head.categories}, defects
    )


@dataclass(frozen=True)
class Head:
    """What the annotations refer to.

    Args:
        images: the usable records.
        categories: the usable records, sorted by id.
        sizes: (height, width) of every image id; None where the image cannot be used.
        defects: of images and categories.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    sizes: dict[int, Size | None]
    defects: list[Defect]


def screen_head(coco: Mapping[str, Any], source: str) -> Head:
    """Apply the rules for images and categories."""
    categories, defects = _screen_categories(coco["categories"], source)
    images, image_defects = _screen_images(coco["images"], source)
    sizes: dict[int, Size | None] = {
        image["id"]: None
        for image in coco["images"]
        if isinstance(image, dict) and is_id(image.get("id"))
    }
    sizes.update({image["id"]: (image["height"], image["width"]) for image in images})
    return Head(images, categories, sizes, defects + image_defects)


def screen_annotations(
    annotations: Iterable[Any], head: Head, source: str, need_masks: bool
) -> Iterator[tuple[list[Defect], dict[str, Any] | None]]:
    """The defects of each annotation and, where it can be used, what is kept of it."""
    known = {category["id"] for category in head.categories}
    seen: set[int] = set()
    for i, annotation in enumerate(annotations):
        found = annotation_defects(
            annotation,
            f"annotations[{i}]",
            sizes=head.sizes,
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
        usable = not has_errors(found)
        size = head.sizes[annotation["image_id"]] if usable else None
        yield found, None if size is None else _normalised(annotation, size, need_masks)


def locate_images(
    images: list[dict[str, Any]], image_root: Path, *, source: str
) -> tuple[dict[int, Path], list[Defect]]:
    """The file of each image id, for those that exist under ``image_root``, links followed.

    Of a page of a TIFF (``stack.tif#page=0``) the file is looked for, and the path names the page;
    of a member of a shard (``shard.tar#7.jpg``) the shard's index.

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
        shard, member = split_member(path)
        if member is not None:
            path = index_path(shard)  # the shard itself may be elsewhere
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            code, text = "image-missing", f"{path}: {getattr(error, 'strerror', None) or error}"
        else:
            if target.is_relative_to(root) and target.is_file():
                named = target if page is None else target.with_name(page_name(target.name, page))
                paths[image["id"]] = named if member is None else root / image["file_name"]
                continue
            code, text = "image-missing", f"{path} is no file"
            if not target.is_relative_to(root):
                code = "path-leaves-root"
                text = f"{path} is a link to {target}; name the folder it points to as image root"
        defects.append(Defect(code, Severity.ERROR, text, source, image["id"]))
    return paths, defects


def image_folders(
    images: Iterable[Mapping[str, Any]], paths: Mapping[int, Path], root: Path
) -> list[str]:
    """Every folder whose change may change what `locate_images` finds.

    Args:
        images: the images looked for.
        paths: those found.
        root: the image folder, resolved.
    """
    named = {os.path.dirname(image["file_name"]) for image in images}
    folders = {root, *(path.parent for path in paths.values())}
    for name in named:
        folders.update(root / part for part in (name, *PurePosixPath(name).parents))
    return sorted(map(str, folders))


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
