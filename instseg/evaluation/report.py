"""COCO scores as tables for the terminal, as COCO's own lines, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from instseg.evaluation.coco import METRICS, CocoScores, Metric
from instseg.evaluation.json_file import write_json

_TITLES = {"bbox": "box", "segm": "mask"}
_CATEGORY_METRICS = ("AP", "AP50", "AP75", "AR100")


def summary_table(scores: Mapping[str, CocoScores]) -> Table:
    """The twelve numbers, box and mask side by side; "-" where there is no ground truth."""
    first = next(iter(scores.values()))
    table = Table(title=f"COCO scores on {first.images} images")
    for heading in ("metric", "IoU", "area"):
        table.add_column(heading)
    table.add_column("max dets", justify="right")
    for iou_type in scores:
        table.add_column(_TITLES[iou_type], justify="right")
    for index, metric in enumerate(METRICS):
        table.add_row(
            metric.name,
            _iou(metric),
            metric.area,
            str(metric.max_detections),
            *(_number(s.stats[metric.name]) for s in scores.values()),
            end_section=index == 5,
        )
    return table


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
    """What COCO's ``summarize`` prints: for each IoU type its heading and twelve lines."""
    lines = []
    for iou_type, score in scores.items():
        lines.append(f"Evaluate annotation type *{iou_type}*")
        lines.extend(_line(metric, score.stats[metric.name]) for metric in METRICS)
    return lines


def write_scores(scores: Mapping[str, CocoScores], path: Path) -> None:
    """Write ``{iou_type: scores}`` as JSON; whoever reads it sees the whole file or none.

    Raises:
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    write_json({iou_type: s.to_dict() for iou_type, s in scores.items()}, path, indent=2)


def _line(metric: Metric, value: float) -> str:
    title = "Average Recall     (AR)" if metric.recall else "Average Precision  (AP)"
    return (
        f" {title} @[ IoU={_iou(metric):<9} | area={metric.area:>6} | "
        f"maxDets={metric.max_detections:>3} ] = {value:0.3f}"
    )


def _iou(metric: Metric) -> str:
    return "0.50:0.95" if metric.iou is None else f"{metric.iou:0.2f}"


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:0.3f}"
