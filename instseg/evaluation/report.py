"""COCO scores as COCO's own lines, as a table for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.markup import escape
from rich.table import Table

from instseg.evaluation.compare import Comparison, Difference
from instseg.evaluation.json_file import write_json
from instseg.evaluation.params import Metric, metrics_of
from instseg.evaluation.scores import CocoScores

_TITLES = {"bbox": "box", "segm": "mask", "boundary": "boundary"}


def category_table(scores: Mapping[str, CocoScores]) -> Table:
    """AP, AP50, AP75 and AR at the last limit of each category, IoU types side by side."""
    table = Table(title="Scores by category")
    table.add_column("category")
    first = next(iter(scores.values()))
    chosen = [
        metric.name
        for metric in metrics_of(first.params)
        if metric.area == "all" and metric.max_detections == first.params.max_detections[-1]
    ]
    for iou_type in scores:
        for name in chosen:
            table.add_column(f"{_TITLES[iou_type]} {name}", justify="right")
    for category in first.per_category:
        values = (s.per_category[category][name] for s in scores.values() for name in chosen)
        table.add_row(escape(category), *map(_number, values))
    return table


def summary_lines(scores: Mapping[str, CocoScores]) -> list[str]:
    """What COCO's ``summarize`` prints, for each IoU type its heading and twelve lines.

    Where there are confidence intervals, they follow the figures.
    """
    lines = []
    for iou_type, score in scores.items():
        lines.append(f"Evaluate annotation type *{iou_type}*")
        lines.extend(_line(metric, score) for metric in metrics_of(score.params))
    return lines


def comparison_tables(comparison: Comparison, shown: int = 10) -> list[Table]:
    """The figures of two models, and the categories and images that make the difference."""
    percent = f"{100 * comparison.options.confidence:g} %"
    title = f"{_TITLES[comparison.iou_type]}: B - A on the same images"
    figures = _difference_table(title, "figure", percent, comparison.stats)
    categories = _difference_table(
        "Categories that differ most in AP",
        "category",
        percent,
        dict(list(comparison.per_category.items())[:shown]),
    )
    images = Table(title="Images that differ most in AP")
    for heading in ("image id", "A", "B", "B - A"):
        images.add_column(heading, justify="right")
    for image in comparison.images[:shown]:
        values = f"{image.a:0.3f}", f"{image.b:0.3f}", f"{image.difference:+0.3f}"
        images.add_row(str(image.image_id), *values)
    return [figures, categories, images]


def _difference_table(
    title: str, what: str, percent: str, differences: Mapping[str, Difference]
) -> Table:
    table = Table(title=title)
    table.add_column(what)
    for heading in ("A", "B", "B - A", f"{percent} interval", "p-value"):
        table.add_column(heading, justify="right")
    for name, d in differences.items():
        known = d.difference is not None and d.low is not None
        table.add_row(
            escape(name),
            _number(d.a),
            _number(d.b),
            "-" if d.difference is None else f"{d.difference:+0.3f}",
            f"[{d.low:+0.3f}, {d.high:+0.3f}]" if known else "-",
            "-" if d.p_value is None else f"{d.p_value:0.3f}",
        )
    return table


class Writable(Protocol):
    """Scores of any kind."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""


class Figures(Protocol):
    """Scores of any kind with named figures."""

    @property
    def stats(self) -> Mapping[str, float]:
        """The summary figures."""

    @property
    def per_category(self) -> Mapping[str, Mapping[str, float]]:
        """The same for each category."""


def plain_lines(scores: Mapping[str, Figures]) -> list[str]:
    """Name and value of each figure, and AP of each category, by IoU type."""
    lines = []
    for iou_type, score in scores.items():
        lines.append(f"{_TITLES[iou_type]}:")
        lines.extend(f"  {name:8} {_number(value)}" for name, value in score.stats.items())
        lines.append("  AP by category:")
        lines.extend(
            f"    {_number(values['AP'])}  {name}" for name, values in score.per_category.items()
        )
    return lines


def slice_table(score: CocoScores) -> Table:
    """The figures of named sets of images, a row for each; AP with its interval."""
    table = Table(title=f"{_TITLES[score.iou_type]}: slices")
    for heading in ("slice", "images", *score.stats):
        table.add_column(heading, justify="left" if heading == "slice" else "right")
    for name, part in score.slices.items():
        figures = [_number(value) for value in part.stats.values()]
        interval = part.intervals.get("AP")
        if interval is not None and interval.low is not None:
            figures[0] += f" [{interval.low:0.3f}, {interval.high:0.3f}]"
        table.add_row(escape(name), str(part.images), *map(escape, figures))
    return table


def write_scores(scores: Mapping[str, Writable], path: Path) -> None:
    """Write ``{iou_type: scores}`` as JSON; whoever reads it sees the whole file or none.

    Raises:
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    write_json({iou_type: s.to_dict() for iou_type, s in scores.items()}, path, indent=2)


def _line(metric: Metric, score: CocoScores) -> str:
    title = "Average Recall     (AR)" if metric.recall else "Average Precision  (AP)"
    thresholds = (metric.iou,) if metric.iou is not None else score.params.iou_thresholds
    iou = ":".join(f"{t:0.2f}" for t in dict.fromkeys((thresholds[0], thresholds[-1])))
    line = (
        f" {title} @[ IoU={iou:<9} | area={metric.area:>6} | "
        f"maxDets={metric.max_detections:>3} ] = {score.stats[metric.name]:0.3f}"
    )
    interval = score.intervals.get(metric.name)
    if interval is None or interval.low is None:
        return line
    return f"{line} [{interval.low:0.3f}, {interval.high:0.3f}]"


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:0.3f}"
