"""COCO scores as COCO's own lines, as a table for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from instseg.evaluation.bootstrap import Interval
from instseg.evaluation.compare import Comparison, Difference
from instseg.evaluation.json_file import write_json
from instseg.evaluation.params import Metric, metrics_of
from instseg.evaluation.scores import CocoScores

_TITLES = {"bbox": "box", "segm": "mask", "boundary": "boundary"}
_CATEGORY_METRICS = ("AP", "AP50", "AP75", "AR100")


def category_table(scores: Mapping[str, CocoScores]) -> Table:
    """AP, AP50, AP75 and AR100 of each category, box and mask side by side."""
    table = Table(title="Scores by category")
    table.add_column("category")
    for iou_type in scores:
        for name in _CATEGORY_METRICS:
            table.add_column(f"{_TITLES[iou_type]} {name}", justify="right")
    for category in next(iter(scores.values())).per_category:
        values = (
            s.per_category[category][name] for s in scores.values() for name in _CATEGORY_METRICS
        )
        table.add_row(escape(category), *map(_number, values))
    return table


def summary_lines(scores: Mapping[str, CocoScores]) -> list[str]:
    """What COCO's ``summarize`` prints, for each IoU type its heading and twelve lines.

    Where there are confidence intervals, they follow the figures.
    """
    lines = []
    for iou_type, score in scores.items():
        lines.append(f"Evaluate annotation type *{iou_type}*")
        lines.extend(
            _line(metric, score.stats[metric.name], score.intervals.get(metric.name))
            for metric in metrics_of(score.params)
        )
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


def write_scores(scores: Mapping[str, CocoScores], path: Path) -> None:
    """Write ``{iou_type: scores}`` as JSON; whoever reads it sees the whole file or none.

    Raises:
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    write_json({iou_type: s.to_dict() for iou_type, s in scores.items()}, path, indent=2)


def _line(metric: Metric, value: float, interval: Interval | None) -> str:
    title = "Average Recall     (AR)" if metric.recall else "Average Precision  (AP)"
    line = (
        f" {title} @[ IoU={_iou(metric):<9} | area={metric.area:>6} | "
        f"maxDets={metric.max_detections:>3} ] = {value:0.3f}"
    )
    if interval is None or interval.low is None:
        return line
    return f"{line} [{interval.low:0.3f}, {interval.high:0.3f}]"


def _iou(metric: Metric) -> str:
    return "0.50:0.95" if metric.iou is None else f"{metric.iou:0.2f}"


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:0.3f}"
