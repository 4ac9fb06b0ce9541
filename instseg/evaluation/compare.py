"""Whether one model is better than another on the same images, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from instseg.evaluation.accumulate import accumulate
from instseg.evaluation.bootstrap import draw_weights, p_value, replicate, standard_error
from instseg.evaluation.coco import category_names, match_records, read_files
from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams, metrics_of
from instseg.evaluation.per_image import average_precision_of_images
from instseg.evaluation.scores import (
    BootstrapOptions,
    category_replicates,
    mean_of_known,
    metric_value,
)
from instseg.evaluation.tables import Floats, Vocabulary


@dataclass(frozen=True)
class Difference:
    """A figure of two models.

    Args:
        a: of the first; -1 where there is no ground truth.
        b: of the second.
        difference: b - a; None where there is no ground truth.
        low: lower end of the difference's confidence interval; None if it is not known.
        high: upper end.
        p_value: how often images drawn at random show at least this difference if there is none.
    """

    a: float
    b: float
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True)
class ImageDifference:
    """The average precision of one image with two models."""

    image_id: int
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Two models on one data set.

    Args:
        iou_type: one of `IOU_TYPES`.
        stats: COCO's figures by name.
        per_category: AP by the category's name, the largest differences first.
        images: those whose AP differs, the largest differences first.
        options: of the bootstrap.
    """

    iou_type: str
    stats: dict[str, Difference]
    per_category: dict[str, Difference]
    images: list[ImageDifference]
    options: BootstrapOptions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


def compare_files(
    gt: Path,
    a: Path,
    b: Path,
    iou_types: Sequence[str] | None = None,
    params: CocoParams | None = None,
    options: BootstrapOptions | None = None,
) -> dict[str, Comparison]:
    """Compare two result files: see `compare_records`.

    Args:
        gt: COCO annotations.
        a: COCO results of the first model.
        b: of the second.
        iou_types: some of `IOU_TYPES`. None compares boxes, and masks if all three files have them.
        params: thresholds, areas and limits; COCO's by default.
        options: of the bootstrap.

    Raises:
        ValueError: as `compare_records`; a file has a defect, and the message names it.
        OSError: a file cannot be read.
    """
    ground_truth, (first, second), kinds = read_files(gt, [a, b], iou_types)
    return {t: compare_records(ground_truth, first, second, t, params, options) for t in kinds}


def compare_records(
    ground_truth: dict[str, Any],
    a: list[dict[str, Any]],
    b: list[dict[str, Any]],
    iou_type: str,
    params: CocoParams | None = None,
    options: BootstrapOptions | None = None,
) -> Comparison:
    """Compare two sets of checked records on prepared ground truth.

    Both are scored on the same draws of images, so that what is hard for both cancels: the paired
    bootstrap (Efron and Tibshirani, 1993, chapters 8 and 16).

    Raises:
        ValueError: ``options`` ask for no replicates.
    """
    params, options = params or CocoParams(), options or BootstrapOptions()
    if options.replicates == 0:
        raise ValueError("a comparison needs replicates; 200 are usual")
    matches = [match_records(ground_truth, records, iou_type, params) for records in (a, b)]
    vocabulary = Vocabulary.of(ground_truth)
    names = ["all"] if params.class_agnostic else category_names(ground_truth)
    weights = draw_weights(len(vocabulary.images), options.replicates, options.seed)
    tables = [accumulate(m, params, len(names)) for m in matches]
    drawn = [replicate(m, params, len(names), weights) for m in matches]
    stats = {}
    for metric in metrics_of(params):
        a_value, b_value = (metric_value(metric, t, params) for t in tables)
        first, second = (category_replicates(metric, d, params) for d in drawn)
        holding = drawn[0].holding[-1, list(params.areas).index(metric.area)]
        spread = mean_of_known(second - first, axis=1)
        stats[metric.name] = _difference(a_value, b_value, spread, int(holding), options.confidence)
    ap = metrics_of(params)[0]
    first, second = (category_replicates(ap, d, params) for d in drawn)
    per_category = {}
    for k, name in enumerate(names):
        a_value, b_value = (metric_value(ap, t.of_category(k), params) for t in tables)
        holding = drawn[0].holding[k, list(params.areas).index("all")]
        spread = second[:, k] - first[:, k]
        per_category[name] = _difference(a_value, b_value, spread, int(holding), options.confidence)
    by_size = sorted(per_category.items(), key=lambda item: -abs(item[1].difference or 0))
    return Comparison(iou_type, stats, dict(by_size), _images(matches, vocabulary), options)


def _difference(
    a: float, b: float, replicates: Floats, images: int, confidence: float
) -> Difference:
    """Args: the two figures, ``[B]`` differences, and how many images hold what is counted."""
    if a < 0 or b < 0:
        return Difference(a, b, None, None, None, None)
    error, difference = standard_error(replicates), b - a
    # A single image, or one that holds all that differs, says nothing of others.
    if error is None or images < 2 or (error == 0 and difference != 0):
        return Difference(a, b, difference, None, None, None)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    return Difference(a, b, difference, low, high, p_value(difference, replicates))


def _images(matches: Sequence[Matches], vocabulary: Vocabulary) -> list[ImageDifference]:
    images = vocabulary.images.tolist()
    first, second = (average_precision_of_images(m, len(images)) for m in matches)
    differences = [
        ImageDifference(image, float(x), float(y), float(y - x))
        for image, x, y in zip(images, first, second, strict=True)
        if not math.isclose(x, y, abs_tol=1e-12) and not np.isnan(x)
    ]
    return sorted(differences, key=lambda d: -abs(d.difference))
