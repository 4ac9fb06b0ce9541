"""The page: the template filled in, with style, script and pictures inside of it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instseg.visualization.evaluation_picture import Outcome
from instseg.visualization.report.confusion import LARGEST
from instseg.visualization.report.panel import Panel
from instseg.visualization.report.style import DASH

_DESCRIPTIONS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small objects",
    "APm": "medium objects",
    "APl": "large objects",
    "AR1": "at most 1 detection per image",
    "AR10": "at most 10",
    "AR100": "at most 100",
    "ARs": "small objects",
    "ARm": "medium objects",
    "ARl": "large objects",
}

_LEGEND = tuple(
    (text, f"rgb{outcome.colour}", outcome.width, " ".join(map(str, outcome.dash or ())))
    for text, outcome in (
        ("found", Outcome.FOUND),
        ("false detection", Outcome.FALSE),
        ("missed object", Outcome.MISSED),
        ("ground truth of a found object", Outcome.TRUTH),
    )
)


def render_page(
    document: dict[str, Any], columns: Mapping[str, dict[str, Any]], panels: Sequence[Panel]
) -> str:
    """The report as HTML that needs nothing but itself.

    Args:
        document: the analysis.
        columns: of the summary: the figures by what the IoU type is called.
        panels: the IoU types that are shown at length.

    All text of the document is escaped, and the page's security policy lets a browser run this
    package's script and no other, and fetch nothing.
    """
    environment = Environment(
        loader=PackageLoader("instseg.visualization.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = points
    environment.tests["missing"] = is_missing
    script = _read(environment, "report.js")
    return environment.get_template("report.html.j2").render(
        document=document,
        columns=columns,
        panels=panels,
        metrics=list(dict.fromkeys(name for stats in columns.values() for name in stats)),
        legend_entries=_LEGEND,
        descriptions=_DESCRIPTIONS,
        largest_confusion=LARGEST,
        style=_read(environment, "report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def points(value: float | None) -> str:
    """A fraction in percent with one decimal, or a dash where it is missing."""
    return DASH if value is None or is_missing(value) else f"{100 * value:.1f}"


def is_missing(value: float | None) -> bool:
    """Whether there is no value: None, NaN, or the -1 that COCO gives without ground truth."""
    return value is None or math.isnan(value) or value == -1


def _read(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, name)
    return Markup(text)  # noqa: S704 - a file of this package
