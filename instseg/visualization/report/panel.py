"""What the page shows of one IoU type, arranged for the template: rows, pictures and their links.

Anchors of a panel start with its kind: ``box-category-3`` is a row of the table of categories,
``box-error-missed`` one of the table of errors, ``box-picture-0`` a picture and ``box-suspect-2``
a likely error of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from instseg.visualization.report.confusion import Confusion, most_confused_pairs
from instseg.visualization.report.pictures import PictureSource, ask_for_picture

Record = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One IoU type on the page.

    Args:
        kind: what it is called: ``box``, ``mask``, ``boundary``.
        section: the document's part of it.
        figures: SVG elements by name.
        categories: the rows of the table of categories; ``anchor``, ``name``, ``suspects`` (likely
            label errors), ``suspect`` (anchor of the first), ``pictures`` (with an error in it) and
            ``picture`` beside the document's values.
        errors: the rows of the table of errors; ``pictures`` and ``picture`` likewise.
        metrics: the names of the figures that categories have.
        confused: pairs of categories that are mixed up.
        suspects: likely label errors, with ``anchor``, ``crop`` and the anchor of a ``picture``.
        pictures: the pictures, with ``anchor``, ``name`` and ``uri``.
        anchors: from a category's name to its row's anchor.
    """

    kind: str
    section: Record
    figures: dict[str, Markup]
    categories: list[Record]
    errors: list[Record]
    metrics: list[str]
    confused: list[Confusion]
    suspects: list[Record]
    pictures: list[Record]
    anchors: dict[str, str]


def make_panel(
    iou_type: str,
    kind: str,
    document: Record,
    figures: dict[str, Markup],
    source: PictureSource,
) -> Panel:
    """Arrange one IoU type of the document.

    Raises:
        ValueError: the source gives a picture that is none.
    """
    section = document["iou_types"][iou_type]
    rows = [name for name in document["categories"] if name in section["per_category"]]
    anchors = {name: f"{kind}-category-{i}" for i, name in enumerate(rows)}
    pictures, suspects = _with_images(iou_type, kind, section, source)
    return Panel(
        kind=kind,
        section=section,
        figures=figures,
        categories=[
            {"name": name, "anchor": anchors[name]}
            | section["per_category"][name]
            | _first("suspect", [s for s in suspects if name in (s["category"], s["suggests"])])
            | _first("picture", [p for p in pictures if name in p["categories"]])
            for name in rows
        ],
        errors=[
            {"name": name, "anchor": f"{kind}-error-{name}"}
            | error
            | _first("picture", [p for p in pictures if p["error"] == name])
            for name, error in section["errors"].items()
        ],
        metrics=[
            metric
            for metric in section["stats"]
            if any(metric in row for row in section["per_category"].values())
        ],
        confused=most_confused_pairs(section["confusion"]),
        suspects=suspects,
        pictures=pictures,
        anchors=anchors,
    )


def _first(what: str, records: list[Record]) -> Record:
    return {what: records[0]["anchor"] if records else None, f"{what}s": len(records)}


def _with_images(
    iou_type: str, kind: str, section: Record, source: PictureSource
) -> tuple[list[Record], list[Record]]:
    """The pictures and the likely label errors with their images."""
    pictures = [
        record
        | {
            "anchor": f"{kind}-picture-{i}",
            "name": record["file_name"] or f"image {record['image_id']}",
            "uri": None,
        }
        for i, record in enumerate(section["pictures"])
    ]
    anchors = {p["image_id"]: p["anchor"] for p in reversed(pictures)}
    suspects = [
        record
        | {
            "anchor": f"{kind}-suspect-{i}",
            "crop": None,
            "picture": anchors.get(record["image_id"]),
        }
        for i, record in enumerate(section["label_errors"])
    ]
    # Image by image, so that a source can keep the one that it has just read.
    for image_id in dict.fromkeys(record["image_id"] for record in pictures + suspects):
        for picture in (p for p in pictures if p["image_id"] == image_id):
            picture["uri"] = ask_for_picture(source, iou_type, image_id)
        for suspect in (s for s in suspects if s["image_id"] == image_id):
            suspect["crop"] = ask_for_picture(source, iou_type, image_id, suspect["box"])
    return pictures, suspects
