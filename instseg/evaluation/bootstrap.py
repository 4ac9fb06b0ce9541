"""How sure the figures are: bootstrap replicates over images, from matches already made.

A replicate draws as many images as there are, with replacement (Efron and Tibshirani, 1993,
chapter 6), and scores them; an image drawn twice counts twice. hotcoco's own bootstrap drops
repeats, so that each of its replicates holds 63 % of the images and its intervals are too narrow by
a quarter, which is why this is written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from instseg.evaluation.accumulate import RECALLS, by_category
from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams
from instseg.evaluation.tables import Floats, Ints
from instseg.ops.bootstrap import bootstrap_precision

Weights = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Replicates:
    """Average precision and recall of B replicates; NaN where one holds no object to find.

    Args:
        precision: ``float64 [B, T, K, A]`` at the largest limit on detections.
        recall: ``float64 [B, T, K, A, M]``.
        holding: ``int64 [K + 1, A]``: how many images hold an object of each category; of any
            category in the last row. A single image says nothing of how figures vary.
    """

    precision: Floats
    recall: Floats
    holding: Ints


@dataclass(frozen=True)
class Interval:
    """A figure and where its true value lies with a given confidence; COCO's figures in [0, 1].

    Args:
        value: the figure on the images given; -1 where there is no ground truth.
        low: lower end; None where there is no ground truth, or only one image has any.
        high: upper end.
    """

    value: float
    low: float | None
    high: float | None


def draw_weights(images: int, replicates: int, seed: int) -> Weights:
    """``int32 [images, B]``: how often each image is drawn in each replicate."""
    generator = np.random.default_rng(seed)
    shares = np.full(images, 1 / images)
    return generator.multinomial(images, shares, size=replicates).astype(np.int32).T.copy()


def replicate(
    matches: Matches, params: CocoParams, categories: int, weights: Weights
) -> Replicates:
    """Score every replicate.

    Args:
        matches: of all images.
        params: what they were matched with.
        categories: K.
        weights: ``int32 [images, B]``, of `draw_weights`; a column of ones scores the set itself.
    """
    limits = np.array(params.max_detections)
    shape = (weights.shape[1], len(params.iou_thresholds), categories, len(params.areas))
    precision = np.full(shape, np.nan)
    recall = np.full((*shape, len(limits)), np.nan)
    chosen = by_category(matches, categories)
    for k, a, objects in _weighted_objects(matches, weights, categories):
        here = chosen[k]
        average, hits = bootstrap_precision(
            matches.found[here, :, a],
            matches.ignored[here, :, a],
            matches.rank[here].astype(np.int64),
            matches.image[here].astype(np.int64),
            weights,
            objects,
            RECALLS,
            limits,
        )
        present = objects > 0
        precision[present, :, k, a] = average[present]
        recall[present, :, k, a] = hits[present] / objects[present, None, None]
    return Replicates(precision, recall, _images_with_objects(matches, categories))


def interval(
    value: float,
    replicates: Floats,
    confidence: float = 0.95,
    *,
    images: int = 2,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """The normal interval of a figure: plus and minus its bootstrap standard error.

    The standard error needs far fewer replicates than percentiles do, and replicates of average
    precision are biased where objects are few, which would move percentiles.

    Args:
        value: the figure.
        replicates: ``float64 [B]``; NaN for those without ground truth.
        confidence: share of data sets whose interval holds the true value.
        images: how many hold an object that the figure counts; with one there is no interval.
        bounds: least and greatest value that the figure can have.
    """
    error = standard_error(replicates)
    low, high = bounds
    if value < low or error is None or images < 2:
        return Interval(value, None, None)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Interval(value, max(low, value - reach), min(high, value + reach))


def p_value(difference: float, replicates: Floats) -> float | None:
    """Two-sided p-value of "there is no difference", by the paired bootstrap's standard error.

    None where the replicates do not differ, though there is a difference: one image holds it.
    """
    error = standard_error(replicates)
    if error is None or (error == 0 and difference != 0):
        return None
    if error == 0:
        return 1.0
    return math.erfc(abs(difference) / error / math.sqrt(2))


def standard_error(replicates: Floats) -> float | None:
    """The standard deviation of the replicates that exist; None if there are fewer than two."""
    known = replicates[~np.isnan(replicates)]
    if len(known) < 2:
        return None
    # The mean of equal numbers is rounded, and would make them differ from it.
    return float(known.std(ddof=1)) if np.ptp(known) > 1e-12 else 0.0


def _images_with_objects(matches: Matches, categories: int) -> Ints:
    """See `Replicates.holding`."""
    areas = matches.truth_ignored.shape[1]
    holding = np.zeros((categories + 1, areas), np.int64)
    for a in range(areas):
        counted = ~matches.truth_ignored[:, a]
        images, kinds = matches.truth_image[counted], matches.truth_category[counted]
        pairs = np.unique(np.stack([kinds, images]), axis=1)
        holding[:categories, a] = np.bincount(pairs[0], minlength=categories)
        holding[categories, a] = len(np.unique(images))
    return holding


def _weighted_objects(
    matches: Matches, weights: Weights, categories: int
) -> Iterator[tuple[int, int, Ints]]:
    """Category, area and ``[B]`` numbers of objects to find, wherever there is one."""
    order = np.argsort(matches.truth_category, kind="stable")
    bounds = np.searchsorted(matches.truth_category[order], np.arange(categories + 1))
    for k in range(categories):
        own = order[bounds[k] : bounds[k + 1]]
        for a in range(matches.truth_ignored.shape[1]):
            counted = own[~matches.truth_ignored[own, a]]
            if len(counted):
                yield k, a, weights[matches.truth_image[counted]].sum(axis=0, dtype=np.int64)
