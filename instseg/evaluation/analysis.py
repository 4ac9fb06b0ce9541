"""All that is known about a scoring as one document: figures, how sure they are, and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import instseg
from instseg.evaluation.bootstrap import Interval
from instseg.evaluation.reasons import Reasons
from instseg.evaluation.scores import BootstrapOptions, CocoScores


def analyse(
    ground_truth: dict[str, Any],
    records: list[dict[str, Any]],
    scores: Mapping[str, CocoScores],
    reasons: Mapping[str, Reasons],
    *,
    title: str,
    ground_truth_name: str,
    results_name: str,
    options: BootstrapOptions,
) -> dict[str, Any]:
    """Put together what a report shows, in plain values that JSON can hold.

    Args:
        ground_truth: as `prepare_ground_truth` gives it.
        records: as `check_results` gives them.
        scores: by IoU type.
        reasons: of the same records, by IoU type; a type without reasons ("boundary") has its
            figures alone. Reasons are about COCO's own parameters whatever the scores' are.
        title: of the report.
        ground_truth_name: what to call the ground truth, as a rule its file.
        results_name: what to call the results.
        options: how the scores' intervals were made.

    Returns:
        ``title``, ``ground_truth``, ``results``, ``versions``, ``created`` (UTC), ``images``,
        ``objects`` (without crowds), ``detections``, ``categories`` (names in order of id),
        ``confidence``, ``replicates`` and, for each of ``iou_types``, ``stats`` and
        ``per_category``, whose figures are ``{"value", "low", "high"}``, and all of
        `Reasons.to_dict`. Of a category these figures are AP, AP50 and AP75, as far as they were
        scored, and AR at the largest limit on detections. A value of -1 says that there is no
        ground truth, a limit of None that there is no interval.

    Raises:
        ValueError: categories were not scored one by one; see `as_one_category`.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    for iou_type, score in scores.items():
        if list(score.per_category) != names:
            raise ValueError(
                f"{iou_type}: the scores are of the categories {list(score.per_category)[:5]}, the "
                f"ground truth has {names[:5]}; of a class-agnostic scoring give as_one_category()"
            )
    return {
        "title": title,
        "ground_truth": ground_truth_name,
        "results": results_name,
        "versions": {
            "instseg": instseg.__version__,
            "hotcoco": version("hotcoco"),
            "numpy": np.__version__,
            "torch": str(torch.__version__),
        },
        "created": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "images": len(ground_truth["images"]),
        "objects": sum(not a["iscrowd"] for a in ground_truth["annotations"]),
        "detections": len(records),
        "categories": names,
        "confidence": options.confidence,
        "replicates": options.replicates,
        "iou_types": {t: _section(score, reasons.get(t)) for t, score in scores.items()},
    }


def as_one_category(
    ground_truth: dict[str, Any], records: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies in which all is of one category, "all": what a class-agnostic scoring looks at."""
    # COCO lines up the categories before it sorts by score, which decides among ties.
    records = sorted(records, key=lambda record: record["category_id"])
    return (
        ground_truth
        | {
            "categories": [{"id": 1, "name": "all"}],
            "annotations": [a | {"category_id": 1} for a in ground_truth["annotations"]],
        },
        [record | {"category_id": 1} for record in records],
    )


def _section(scores: CocoScores, reasons: Reasons | None) -> dict[str, Any]:
    why = {"per_category": {}} if reasons is None else reasons.to_dict()
    shown = ("AP", "AP50", "AP75", f"AR{scores.params.max_detections[-1]}")
    per_category = {
        name: _estimates(
            {metric: figures[metric] for metric in shown if metric in figures},
            scores.category_intervals.get(name, {}),
        )
        | why["per_category"].get(name, {})
        for name, figures in scores.per_category.items()
    }
    stats = _estimates(scores.stats, scores.intervals)
    return {"stats": stats} | why | {"per_category": per_category}


def _estimates(
    values: Mapping[str, float], intervals: Mapping[str, Interval]
) -> dict[str, dict[str, float | None]]:
    return {
        name: asdict(intervals.get(name, Interval(value, None, None)))
        for name, value in values.items()
    }
