"""Intervals of map scores: the bootstrap over images against one made by hand."""

from __future__ import annotations

import math
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch

from instseg.evaluation.bootstrap import draw_weights
from instseg.evaluation.images import ImageEvaluator
from instseg.evaluation.map_intervals import stat_intervals
from instseg.evaluation.scores import BootstrapOptions
from instseg.evaluation.semantic import SemanticEvaluator
from instseg.evaluation.threshold import ThresholdEvaluator
from instseg.structures.image_target import ImageTarget

NORMAL_95, NORMAL_80 = 1.959964, 1.281552


def maps(images: int = 6) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
    """Predictions that are right where random, more so from image to image."""
    generator = np.random.default_rng(0)
    truth = [generator.integers(0, 2, (9, 7)) for _ in range(images)]
    right = [generator.random((9, 7)) < (i + 2) / (images + 2) for i in range(images)]
    predicted = [np.where(r, t, 1 - t) for r, t in zip(right, truth, strict=True)]
    return list(range(images)), predicted, truth


def filled(images: int = 6) -> SemanticEvaluator:
    evaluator = SemanticEvaluator(2, boundary_tolerance=None)
    evaluator.update(*maps(images))
    return evaluator


def jaccard(predicted: list[np.ndarray], truth: list[np.ndarray], counts: np.ndarray) -> float:
    """Mean over the classes, of images taken ``counts`` times, by sets of pixels."""
    values = []
    for label in (0, 1):
        both = either = 0
        for p, t, n in zip(predicted, truth, counts, strict=True):
            both += n * ((p == label) & (t == label)).sum()
            either += n * ((p == label) | (t == label)).sum()
        values.append(both / either)
    return float(np.mean(values))


def test_drawn_images_count_as_often_as_they_are_drawn():
    _, predicted, truth = maps()
    evaluator = filled()
    for counts in ([1] * 6, [0, 2, 1, 0, 3, 0], [6, 0, 0, 0, 0, 0]):
        found = evaluator.drawn(np.array(counts)).compute()
        assert found.stats["jaccard"] == pytest.approx(jaccard(predicted, truth, np.array(counts)))
        assert found.images == sum(counts)
        assert found.pixels == 63 * sum(counts)
    assert len(evaluator) == 6  # itself is as it was


def test_a_count_for_each_image():
    with pytest.raises(ValueError, match="shorter"):
        filled().drawn([1, 1])


@pytest.mark.parametrize(("confidence", "reach"), [(0.95, NORMAL_95), (0.8, NORMAL_80)])
def test_intervals_are_those_of_a_bootstrap_by_hand(confidence, reach):
    _, predicted, truth = maps()
    weights = draw_weights(6, 50, seed=7)
    assert (weights.sum(axis=0) == 6).all()
    replicates = [jaccard(predicted, truth, column) for column in weights.T]
    mean = sum(replicates) / 50
    error = math.sqrt(sum((r - mean) ** 2 for r in replicates) / 49)
    found = stat_intervals(filled(), BootstrapOptions(50, confidence, 7))["jaccard"]
    value = jaccard(predicted, truth, np.ones(6))
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(value - reach * error, rel=1e-5)
    assert found.high == pytest.approx(value + reach * error, rel=1e-5)


def test_the_best_threshold_is_chosen_anew_for_each_replicate():
    generator = np.random.default_rng(1)
    truth = [generator.integers(0, 2, (5, 5)) for _ in range(4)]
    scores = [np.clip(0.2 * i + 0.3 * t, 0, 1) for i, t in enumerate(truth)]
    evaluator = ThresholdEvaluator(bins=16)
    evaluator.update(range(4), scores, truth)
    options = BootstrapOptions(40)
    drawn = []
    for column in draw_weights(4, 40, options.seed).T:
        again = ThresholdEvaluator(bins=16)
        chosen = [i for i, n in enumerate(column) for _ in range(n)]
        again.update(range(4), [scores[i] for i in chosen], [truth[i] for i in chosen])
        drawn.append(again.compute().stats["f1_threshold"])
    assert len(set(drawn)) > 1
    found = stat_intervals(evaluator, options)["f1_threshold"]
    middle = evaluator.compute().stats["f1_threshold"]
    assert found.high == pytest.approx(min(1.0, middle + NORMAL_95 * np.std(drawn, ddof=1)))


def test_ends_stay_where_the_figure_can_be():
    evaluator = SemanticEvaluator(2)
    flat = np.zeros((4, 4), dtype=np.int64)
    half = flat.copy()
    half[:2] = 1
    evaluator.update([0, 1, 2], [half, half, half], [half, half, flat])
    for figure in stat_intervals(evaluator).values():
        assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_decibels_are_no_shares():
    """PSNR goes up to 100, SSIM down to -1."""
    generator = torch.Generator().manual_seed(0)
    evaluator = ImageEvaluator()
    true = [torch.rand(3, 12, 12, generator=generator) for _ in range(4)]
    # Of inverted pictures the structure is the opposite.
    made = [1 - t if i else t + 0.01 * (0.5 - t) for i, t in enumerate(true)]
    evaluator.update(range(4), [ImageTarget(m) for m in made], [ImageTarget(t) for t in true])
    decibels = [
        -10 * math.log10(((a - b) ** 2).double().mean()) for a, b in zip(made, true, strict=True)
    ]
    found = stat_intervals(evaluator, BootstrapOptions(60))
    replicates = draw_weights(4, 60, 0).T @ np.array(decibels) / 4
    reach = NORMAL_95 * replicates.std(ddof=1)
    assert found["psnr"].value == pytest.approx(np.mean(decibels), rel=1e-5)
    assert found["psnr"].low == pytest.approx(max(0, np.mean(decibels) - reach), rel=1e-4)
    assert found["psnr"].high == pytest.approx(np.mean(decibels) + reach, rel=1e-4)
    assert found["psnr"].high > 1
    assert found["ssim"].value < 0
    assert -1 <= found["ssim"].low < found["ssim"].value < found["ssim"].high


@pytest.mark.parametrize("images", [0, 1])
def test_few_images_have_no_interval(images):
    for figure in stat_intervals(filled(images)).values():
        assert figure.low is None
        assert figure.high is None


def test_no_replicates_no_interval():
    evaluator = filled()
    found = stat_intervals(evaluator, BootstrapOptions(0))
    scores = evaluator.compute()
    classes = {f"{c}: {k}": v for c, row in scores.per_class.items() for k, v in row.items()}
    assert classes
    assert {name: f.value for name, f in found.items()} == scores.stats | classes
    assert all(f.low is None for f in found.values())


def test_undefined_figures_have_no_interval():
    evaluator = ThresholdEvaluator()
    flat = np.zeros((4, 4), dtype=np.int64)
    evaluator.update([0, 1], [flat / 2.0, flat / 2.0], [flat, flat])
    figure = stat_intervals(evaluator)["f1"]
    assert asdict(figure) == {"value": -1.0, "low": None, "high": None}


def test_merged_pickles_have_the_intervals_of_the_whole():
    """Order follows the merge, so that the same images are drawn."""
    ids, predicted, truth = maps()
    parts = [SemanticEvaluator(2, boundary_tolerance=None) for _ in range(2)]
    for number, part in enumerate(parts):
        own = slice(3 * number, 3 * number + 3)
        part.update(ids[own], predicted[own], truth[own])
    second, first = (pickle.loads(pickle.dumps(part)) for part in parts)
    first.merge(second)
    assert stat_intervals(first) == stat_intervals(filled())
