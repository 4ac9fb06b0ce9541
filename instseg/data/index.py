"""From a COCO dictionary to the records a data set serves, leaving out what cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instseg.data.coco import AnnotationError
from instseg.data.columns import Columns
from instseg.data.defect_log import DefectLog, read_defects
from instseg.data.defects import Defect
from instseg.data.index_builder import IndexBuilder
from instseg.data.records import Record, Records
from instseg.data.screening import (
    Screened,
    image_folders,
    locate_images,
    screen,
    screen_annotations,
    screen_head,
)

__all__ = [
    "CocoIndex",
    "OnRecord",
    "Record",
    "Records",
    "Screened",
    "build_index",
    "locate_images",
    "screen",
]

OnRecord = Callable[[int, int], None]
"""Called with (annotations done, annotations in all)."""

_REPORTED = 1000  # annotations between two calls of `OnRecord`


class CocoIndex:
    """The usable part of an annotation file, in columns: little memory, shared by processes.

    Args:
        columns: from `build_index`, or the same from a file.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.records = Records(columns)
        """One for each usable image, with or without objects, in the order of the file."""
        self.categories: list[dict[str, Any]] = columns.meta["categories"]
        """``{"id", "name"}``, sorted by id; label i is the i-th."""
        self.total_images: int = columns.meta["total_images"]
        """Number of images in the file."""
        self.total_annotations: int = columns.meta["total_annotations"]
        """Number of annotations in the file."""

    @property
    def class_names(self) -> list[str]:
        """The name of each label."""
        return [category["name"] for category in self.categories]

    @property
    def category_ids(self) -> list[int]:
        """The category id of each label."""
        return [category["id"] for category in self.categories]

    @property
    def kept_annotations(self) -> int:
        """Number of annotations in the records."""
        return len(self.columns["annotation_id"])

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the file was left out."""
        return not self.columns.meta["reasons"]

    @property
    def defects(self) -> list[Defect]:
        """Everything found, errors and others; made anew at each call."""
        return list(read_defects(self.columns.arrays, self.columns.meta["source"]))

    @property
    def coco(self) -> dict[str, Any]:
        """The ground truth of `records` for evaluation, made anew at each call, as it is large.

        COCO's own keys alone, ``area`` and ``iscrowd`` filled in, boxes as annotated (not clipped).
        """
        return {
            "images": list(self.records.coco_images()),
            "annotations": list(self.records.coco_annotations(self.category_ids)),
            "categories": [dict(category) for category in self.categories],
        }

    def summary(self) -> str:
        """What is left out and why, in one sentence."""
        gone = self.total_annotations - self.kept_annotations
        gone_images = self.total_images - len(self.records)
        reasons = self.columns.meta["reasons"]
        if not reasons:
            return (
                f"{len(self.records)} images, {self.kept_annotations} annotations, "
                f"{len(self.categories)} classes; none left out"
            )
        return (
            f"left out {gone} of {self.total_annotations} annotations and {gone_images} of "
            f"{self.total_images} images (their annotations with them): {reasons}; "
            "run `instseg dataset check` for the whole list"
        )


def build_index(
    coco: Mapping[str, Any],
    image_root: Path,
    *,
    source: str,
    need_masks: bool = False,
    on_record: OnRecord | None = None,
) -> CocoIndex:
    """Index a dictionary from `coco.load_coco`; masks stay polygons or RLE.

    Args:
        coco: the annotations; they are not changed. Of ``annotations`` only the length is taken,
            and one walk made: `json_stream.stream_coco` keeps a large file out of memory.
        image_root: the folder that ``file_name`` is relative to; no image outside it is read.
        source: the annotation file's name, for messages.
        need_masks: whether masks are used. If so, an annotation without one is left out; if not,
            masks are neither checked nor kept.
        on_record: told how far the work is.

    Raises:
        FileNotFoundError: there is no folder ``image_root``.
        AnnotationError: no image or no category can be used; the message says why.
    """
    head = screen_head(coco, source)
    paths, file_defects = locate_images(head.images, image_root, source=source)
    images = [image for image in head.images if image["id"] in paths]
    labels = {category["id"]: i for i, category in enumerate(head.categories)}
    root = image_root.resolve()
    builder = IndexBuilder(images, paths, root, labels, with_masks=need_masks)
    log = DefectLog()
    log.extend(head.defects)
    total = len(coco["annotations"])
    for done, (defects, annotation) in enumerate(
        screen_annotations(coco["annotations"], head, source, need_masks), start=1
    ):
        log.extend(defects)
        if annotation is not None:
            builder.add(annotation)
        if on_record is not None and (done % _REPORTED == 0 or done == total):
            on_record(done, total)
    log.extend(file_defects)
    if not images or not head.categories:
        what = "image" if not images else "category"
        why = log.reasons() or "the file lists none"
        raise AnnotationError(f"{source}: no {what} can be used: {why}")
    meta = {
        "source": source,
        "root": str(root),
        "folders": image_folders(head.images, paths, root),
        "categories": head.categories,
        "reasons": log.reasons(),
        "total_images": len(coco["images"]),
        "total_annotations": total,
    }
    return CocoIndex(Columns(builder.arrays() | log.arrays(), meta))
