"""Confidence intervals of what the evaluators of maps measure: the bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from instseg.evaluation.bootstrap import Interval, draw_weights, interval
from instseg.evaluation.maps import MapScores, PerImageEvaluator
from instseg.evaluation.scores import BootstrapOptions


def stat_intervals(
    evaluator: PerImageEvaluator[Any], options: BootstrapOptions | None = None
) -> dict[str, Interval]:
    """The figures of ``evaluator.compute()`` with their intervals.

    A replicate draws as many images as there are, with replacement, and scores them, an image
    drawn twice counting twice; what is chosen on the images, such as the best threshold, is
    chosen on those of the replicate. With few images (the six of a small validation set) the
    interval is a rough one: the bootstrap knows only as many ways in which images differ.

    Args:
        evaluator: with the images it was given.
        options: how many replicates and what confidence.

    Returns:
        By the name of the figure in ``stats``, and by ``class: figure`` for each class where there
        is ``per_class``. Where there are fewer than two images, no replicates are asked
        for, or the figure is undefined (-1), without ends.
    """
    options = options or BootstrapOptions()
    figures = _figures(evaluator.compute())
    images = len(evaluator)
    drawn: list[dict[str, float]] = []
    if images and options.replicates:
        weights = draw_weights(images, options.replicates, options.seed)
        drawn = [_figures(evaluator.drawn(column).compute()) for column in weights.T]
    intervals = {}
    for name, value in figures.items():
        values = np.array([row[name] for row in drawn], dtype=np.float64)
        bounds = evaluator.bounds.get(name, (0.0, 1.0))
        values[values < bounds[0]] = np.nan
        intervals[name] = interval(value, values, options.confidence, images=images, bounds=bounds)
    return intervals


def _figures(scores: MapScores) -> dict[str, float]:
    classes: Mapping[str, Mapping[str, float]] = getattr(scores, "per_class", {})
    own = {f"{c}: {name}": value for c, row in classes.items() for name, value in row.items()}
    return scores.stats | own
