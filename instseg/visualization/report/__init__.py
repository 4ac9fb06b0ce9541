"""An evaluation as one HTML page that anyone can open, with its figures and numbers as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from instseg.visualization.report.figures import draw_figures
from instseg.visualization.report.files import write_whole
from instseg.visualization.report.page import render_page
from instseg.visualization.report.panel import make_panel
from instseg.visualization.report.pictures import PictureSource
from instseg.visualization.report.style import report_style, to_file, to_inline

__all__ = ["PictureSource", "write_report"]

_KINDS = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
_KEYS = (
    *("title", "ground_truth", "results", "versions", "created", "images", "objects"),
    *("detections", "categories", "confidence", "replicates", "iou_types"),
)
_FIGURES_KEYS = ("stats", "per_category")
_REASONS_KEYS = (
    *("curves", "errors", "calibration", "confusion", "sizes"),
    *("crowding", "label_errors", "pictures"),
)


def write_report(document: dict[str, Any], folder: Path, picture: PictureSource) -> Path:
    """Write ``report.html``, ``report.json`` and ``figures/*.png`` and ``*.svg`` into ``folder``.

    The page holds its figures, pictures, style and script, so that it can be sent around alone. It
    is written last, and whole or not at all.

    Args:
        document: the analysis of an evaluation, as JSON can hold it. -1 and None are missing
            values, and shown as a dash. An IoU type of no more than ``stats`` and ``per_category``
            is shown in the summary alone.
        folder: made if need be; files of an earlier report are replaced.
        picture: called once for each IoU type and each of its ``pictures``, and for the box of
            each of its ``label_errors``.

    Returns:
        The path of the page.

    Raises:
        ValueError: the document lacks a key or holds what JSON cannot, or a picture is not
            ``uint8 [H, W, 3]``.
        OSError: a file cannot be written.
    """
    _check(document)
    write_whole(_to_json(document), folder / "report.json")
    sections, panels = document["iou_types"], []
    for iou_type in (t for t in sections if _has_reasons(sections[t])):
        kind = _KINDS[iou_type]
        figures = _write_figures(kind, sections[iou_type], folder / "figures")
        panels.append(make_panel(iou_type, kind, document, figures, picture))
    columns = {_KINDS[iou_type]: section["stats"] for iou_type, section in sections.items()}
    page = folder / "report.html"
    # JSON may hold halves of surrogate pairs, which UTF-8 cannot.
    write_whole(render_page(document, columns, panels).encode("utf-8", "replace"), page)
    return page


def _check(document: dict[str, Any]) -> None:
    _require(document, _KEYS, "the report's document")
    for iou_type, section in document["iou_types"].items():
        if iou_type not in _KINDS:
            raise ValueError(
                f"the report's document: IoU type must be one of {tuple(_KINDS)}, got {iou_type!r}"
            )
        keys = _FIGURES_KEYS + (_REASONS_KEYS if _has_reasons(section) else ())
        _require(section, keys, f"the report's document, IoU type {iou_type!r}")
    if not any(map(_has_reasons, document["iou_types"].values())):
        raise ValueError(
            "the report's document: no IoU type has more than figures, so nothing is to be shown"
        )


def _has_reasons(section: dict[str, Any]) -> bool:
    """Whether a section is more than figures, which the summary shows."""
    return any(key in section for key in _REASONS_KEYS)


def _require(record: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    lacking = [key for key in keys if key not in record]
    if lacking:
        raise ValueError(f"{where}: lacks {', '.join(map(repr, lacking))}")


def _to_json(document: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("ascii")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the report's document: JSON cannot hold it ({error})") from error


def _write_figures(kind: str, section: dict[str, Any], folder: Path) -> dict[str, Markup]:
    """Write every figure as PNG and SVG; returns them as elements of the page."""
    elements = {}
    with report_style():
        for name, drawing in draw_figures(kind, section).items():
            svg = to_file(drawing, "svg")
            write_whole(svg, folder / f"{drawing.name}.svg")
            write_whole(to_file(drawing, "png"), folder / f"{drawing.name}.png")
            elements[name] = Markup(to_inline(drawing, svg))  # noqa: S704 - matplotlib escapes
    return elements
