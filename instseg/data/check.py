"""Find every defect of a COCO data set, in the annotation file and in the images themselves."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import hotcoco
import numpy.typing as npt

from instseg.data.coco import load_coco, parse_segmentation
from instseg.data.defects import Defect, Severity, has_errors, has_mask
from instseg.data.image_io import ImageError, read_image
from instseg.data.index import locate_images, screen
from instseg.data.tiff import split_page
from instseg.ops import rle
from instseg.structures.geometry import Size

__all__ = ["check_coco", "format_report", "has_errors"]

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

_MIN_MASK_BOX_IOU = 0.5
_MAX_AREA_RATIO = 2.0
_ROUNDING = 2.0  # pixels that outline, box and raster of one object may differ by on each side

# What hotcoco's healthcheck sees and the rules here do not.
_HEALTH_CODES = {
    "near_duplicate": "two annotations of one class are nearly the same (IoU > 0.95)",
    "extreme_aspect_ratio": "the box is extremely long and thin",
    "zero_instance_category": "without any object",
    "low_instance_category": "with fewer than 10 objects",
}


def check_coco(
    annotation_file: Path,
    image_root: Path,
    *,
    channels: int = 3,
    bits16: Literal["scale", "keep"] = "scale",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Defect]:
    """Every defect of a data set: record rules, image files, decoded masks, statistics.

    Masks are checked where the file has any. An annotation without one is then a warning only,
    because a detector without masks can use it.

    Args:
        annotation_file: the COCO JSON file.
        image_root: the folder that ``file_name`` is relative to.
        channels: of the images; those of another number count as unreadable.
        bits16: how the model will take 16-bit images. See `read_image`.
        on_progress: called with (images done, images in all) after each image.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        AnnotationError: the file cannot be read as COCO at all.
        ValueError: ``channels`` is less than 1.
    """
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    read = partial(read_image, channels=channels, bits16=bits16)
    coco = load_coco(annotation_file)
    file = str(annotation_file)
    need_masks = any(isinstance(a, dict) and has_mask(a) for a in coco["annotations"])
    screened = screen(coco, source=file, need_masks=need_masks)
    images = screened.coco["images"]
    paths, file_defects = locate_images(images, image_root, source=file)
    defects = [
        replace(d, severity=Severity.WARNING) if d.code == "mask-missing" else d
        for d in screened.defects
    ]
    defects += file_defects

    sizes: dict[int, Size] = {image["id"]: (image["height"], image["width"]) for image in images}
    for done, (image_id, path) in enumerate(paths.items(), start=1):
        defects += _file_defects(path, image_id, sizes[image_id], file, read)
        if on_progress is not None:
            on_progress(done, len(paths))
    if need_masks:
        for annotation in screened.coco["annotations"]:
            defects += _mask_defects(annotation, sizes[annotation["image_id"]], file)
    defects += _unreferenced(coco["images"], image_root, file)
    defects += _statistics(screened.coco, file)
    return defects


def format_report(defects: Sequence[Defect]) -> str:
    """A report as plain text: worst first, grouped by code, one line for each defect."""
    if not defects:
        return "no defects"
    lines = []
    for severity in Severity:
        groups: dict[str, list[Defect]] = defaultdict(list)
        for defect in defects:
            if defect.severity is severity:
                groups[defect.code].append(defect)
        for code, group in sorted(groups.items()):
            lines.append(f"{severity.value} {code} ({len(group)})")
            lines += [f"  {_place(defect)}: {defect.message}" for defect in group]
    counts = [
        f"{number} {severity.value}{'' if number == 1 else 's'}"
        for severity in Severity
        if (number := sum(defect.severity is severity for defect in defects))
    ]
    return "\n".join([*lines, ", ".join(counts)])


def _place(defect: Defect) -> str:
    place = defect.file
    if defect.image_id is not None:
        place += f", image {defect.image_id}"
    if defect.annotation_id is not None:
        place += f", annotation {defect.annotation_id}"
    return place


def _file_defects(
    path: Path, image_id: int, size: Size, file: str, read: Callable[[Path], npt.NDArray[Any]]
) -> Iterator[Defect]:
    try:
        actual = read(path).shape[:2]
    except ImageError as error:
        yield Defect("image-unreadable", Severity.ERROR, str(error), file, image_id)
        return
    if actual != size:
        text = (
            f"{path} is {actual[1]} x {actual[0]}, but the annotation file says "
            f"{size[1]} x {size[0]}"
        )
        if actual == (size[1], size[0]):
            text += (
                "; the sides are swapped: was it annotated without regard to its EXIF orientation?"
            )
        yield Defect("image-size-differs", Severity.ERROR, text, file, image_id)


def _mask_defects(annotation: dict[str, Any], size: Size, file: str) -> Iterator[Defect]:
    ids = annotation["image_id"], annotation["id"]
    segmentation = parse_segmentation(annotation["segmentation"], size)
    code = segmentation if isinstance(segmentation, dict) else rle.from_polygons(segmentation, size)
    pixels = rle.area(code)
    if pixels == 0:
        text = "the mask covers no pixel of the image"
        yield Defect("mask-empty", Severity.ERROR, text, file, *ids)
        return
    x, y, w, h = annotation["bbox"]
    box, tight = (x, y, x + w, y + h), rle.to_box(code)
    iou = _box_iou(box, tight)
    apart = max(abs(a - b) for a, b in zip(box, tight, strict=True))
    if iou < _MIN_MASK_BOX_IOU and apart > _ROUNDING:
        text = (
            f"the mask reaches from {tight[0]:g}, {tight[1]:g} to {tight[2]:g}, {tight[3]:g}, the "
            f"box from {box[0]:g}, {box[1]:g} to {box[2]:g}, {box[3]:g} (IoU {iou:.2f})"
        )
        yield Defect("mask-disagrees-with-box", Severity.WARNING, text, file, *ids)
    area = annotation["area"]
    margin = _ROUNDING * (tight[2] - tight[0] + tight[3] - tight[1])
    ratio = max(area, pixels) / min(area, pixels)
    if ratio > _MAX_AREA_RATIO and abs(area - pixels) > margin:
        text = f"'area' is {area:g}, the mask has {pixels} pixels"
        yield Defect("area-disagrees", Severity.WARNING, text, file, *ids)


def _box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _unreferenced(images: list[Any], image_root: Path, file: str) -> Iterator[Defect]:
    named = {
        PurePosixPath(split_page(image["file_name"])[0]).as_posix()
        for image in images
        if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    }
    extra = sorted(
        name
        for folder, _, names in os.walk(image_root)
        for path in (Path(folder, name) for name in names)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and (name := path.relative_to(image_root).as_posix()) not in named
    )
    if extra:
        shown = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
        text = f"{len(extra)} images below {image_root} are not in the annotation file: {shown}"
        yield Defect("image-unreferenced", Severity.NOTE, text, file)


def _statistics(coco: dict[str, list[dict[str, Any]]], file: str) -> Iterator[Defect]:
    """Notes on the set as a whole, counted by hotcoco on the usable records."""
    health = hotcoco.COCO(coco).healthcheck()
    names = {category["id"]: category["name"] for category in coco["categories"]}
    images = {annotation["id"]: annotation["image_id"] for annotation in coco["annotations"]}
    for finding in health["warnings"]:
        code, ids = finding["code"], finding["affected_ids"]
        if code not in _HEALTH_CODES:
            continue
        text, code_here = _HEALTH_CODES[code], code.replace("_", "-")
        if code.endswith("category"):
            shown = ", ".join(sorted(str(names[i]) for i in ids))
            yield Defect(code_here, Severity.NOTE, f"{len(ids)} classes {text}: {shown}", file)
        else:
            for i in ids:
                yield Defect(code_here, Severity.NOTE, text, file, images[i], i)
    empty = health["summary"]["images_without_annotations"]
    if empty:
        text = f"{empty} images have no object and are trained as background"
        yield Defect("image-without-objects", Severity.NOTE, text, file)
