"""Summary figures out of tables and matches: what a scoring gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from instseg.evaluation.accumulate import PrecisionRecall
from instseg.evaluation.bootstrap import Interval, Replicates, interval
from instseg.evaluation.params import CocoParams, Metric, metrics_of
from instseg.evaluation.tables import Floats


@dataclass(frozen=True)
class CocoScores:
    """What one scoring gave. Scores lie in [0, 1], or are -1 where there is no ground truth.

    Args:
        iou_type: one of `IOU_TYPES`.
        stats: the summary figures by name, COCO's twelve as a rule.
        per_category: the same for each category, by its name, in order of category id.
        images: how many images were scored.
        detections: how many detections there were on them.
        params: thresholds, areas and limits of the scoring.
        intervals: the figures of ``stats`` with their confidence intervals; empty where none were
            asked for.
        category_intervals: the same for each category.
        slices: the scores of named sets of images.
    """

    iou_type: str
    stats: dict[str, float]
    per_category: dict[str, dict[str, float]]
    images: int
    detections: int
    params: CocoParams = field(default_factory=CocoParams)
    intervals: dict[str, Interval] = field(default_factory=dict)
    category_intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    slices: dict[str, CocoScores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class BootstrapOptions:
    """How intervals are made.

    Args:
        replicates: how many times the images are drawn again; 0 makes no intervals.
        confidence: share of data sets whose interval holds the true value.
        seed: of the draws.
    """

    replicates: int = 200
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 0 or self.replicates == 1:
            raise ValueError(f"replicates must be 0 or at least 2, got {self.replicates}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in (0, 1), got {self.confidence}")


def make_scores(
    tables: PrecisionRecall,
    replicates: Replicates | None,
    params: CocoParams,
    options: BootstrapOptions,
    *,
    iou_type: str,
    categories: Sequence[str],
    images: int,
    detections: int,
) -> CocoScores:
    """The figures of COCO's tables, with intervals if there are replicates.

    Args:
        tables: of K categories.
        replicates: of the same; None gives no intervals.
        params: what both were computed with.
        options: of the intervals.
        iou_type: passed on, as are ``images`` and ``detections``.
        categories: the names of the K categories.
        images: how many were scored.
        detections: how many there were.
    """
    metrics = metrics_of(params)
    stats = {m.name: metric_value(m, tables, params) for m in metrics}
    per_category = {
        name: {m.name: metric_value(m, tables.of_category(k), params) for m in metrics}
        for k, name in enumerate(categories)
    }
    intervals: dict[str, Interval] = {}
    category_intervals: dict[str, dict[str, Interval]] = {}
    if replicates is not None:
        areas = list(params.areas)
        for m in metrics:
            values = category_replicates(m, replicates, params)
            holding = replicates.holding[:, areas.index(m.area)]
            intervals[m.name] = interval(
                stats[m.name],
                mean_of_known(values, axis=1),
                options.confidence,
                images=int(holding[-1]),
            )
            for k, category in enumerate(categories):
                category_intervals.setdefault(category, {})[m.name] = interval(
                    per_category[category][m.name],
                    values[:, k],
                    options.confidence,
                    images=int(holding[k]),
                )
    return CocoScores(
        iou_type, stats, per_category, images, detections, params, intervals, category_intervals
    )


def metric_value(metric: Metric, tables: PrecisionRecall, params: CocoParams) -> float:
    """The mean over thresholds, recalls and categories with ground truth; -1 without any."""
    area = list(params.areas).index(metric.area)
    limit = params.max_detections.index(metric.max_detections)
    table = (tables.recall if metric.recall else tables.precision)[..., area, limit]
    if metric.iou is not None:
        table = table[_threshold(metric.iou, params)]
    known = table[table > -1]
    return float(known.mean()) if known.size else -1.0


def category_replicates(metric: Metric, replicates: Replicates, params: CocoParams) -> Floats:
    """``float64 [B, K]``: a figure of each category in each replicate; NaN without an object."""
    area = list(params.areas).index(metric.area)
    if metric.recall:
        limit = params.max_detections.index(metric.max_detections)
        table = replicates.recall[..., area, limit]
    else:
        table = replicates.precision[..., area]
    chosen: Floats = (
        table.mean(axis=1) if metric.iou is None else table[:, _threshold(metric.iou, params)]
    )
    return chosen


def _threshold(iou: float, params: CocoParams) -> int:
    index = params.threshold_index(iou)
    if index is None:
        raise ValueError(f"the IoU threshold {iou} is not among {params.iou_thresholds}")
    return index


def mean_of_known(values: Floats, axis: int) -> Floats:
    """The mean without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
