"""Losses of regions against loops in float64, hand-worked cases and smp."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.losses.segmentation import (
    LOSSES,
    bce,
    bce_log_dice,
    cross_entropy,
    dice,
    exp_log,
    focal_tversky,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    sensitivity_specificity,
    squared_dice,
    tversky,
)
from tests.losses.segmentation_cases import Batch, Element, average, class_weight, regions, some

MODES = pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])
JOINED = pytest.mark.parametrize("joined", [False, True])
SMOOTH = pytest.mark.parametrize("smooth", [0.0, 1.0])
RATIOS = [
    "dice", "squared_dice", "log_cosh_dice", "jaccard", "tversky", "focal_tversky",
    "generalized_dice", "sensitivity_specificity",
]  # fmt: skip


def dice_index(pixels: list[Element], smooth: float) -> float:
    both = sum(e.weight * e.p * e.y for e in pixels)
    sizes = sum(e.weight * (e.p + e.y) for e in pixels)
    return (2 * both + smooth) / (sizes + smooth)


def squared_index(pixels: list[Element], smooth: float) -> float:
    both = sum(e.weight * e.p * e.y for e in pixels)
    sizes = sum(e.weight * (e.p**2 + e.y**2) for e in pixels)
    return (2 * both + smooth) / (sizes + smooth)


def jaccard_index(pixels: list[Element], smooth: float) -> float:
    both = sum(e.weight * e.p * e.y for e in pixels)
    union = sum(e.weight * (e.p + e.y - e.p * e.y) for e in pixels)
    return (both + smooth) / (union + smooth)


def tversky_index(pixels: list[Element], smooth: float, alpha=0.3, beta=0.7) -> float:
    tp = sum(e.weight * e.p * e.y for e in pixels)
    fp = sum(e.weight * e.p * (1 - e.y) for e in pixels)
    fn = sum(e.weight * (1 - e.p) * e.y for e in pixels)
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def sensitivity(pixels: list[Element], smooth: float, r=0.05) -> float:
    inside = sum(e.weight * (e.y - e.p) ** 2 * e.y for e in pixels)
    outside = sum(e.weight * (e.y - e.p) ** 2 * (1 - e.y) for e in pixels)
    positives = sum(e.weight * e.y for e in pixels)
    negatives = sum(e.weight * (1 - e.y) for e in pixels)
    return r * inside / positives + (1 - r) * outside / negatives


OF_A_REGION = [
    (dice, lambda pixels, s: 1 - dice_index(pixels, s)),
    (squared_dice, lambda pixels, s: 1 - squared_index(pixels, s)),
    (log_cosh_dice, lambda pixels, s: math.log(math.cosh(1 - dice_index(pixels, s)))),
    (jaccard, lambda pixels, s: 1 - jaccard_index(pixels, s)),
    (tversky, lambda pixels, s: 1 - tversky_index(pixels, s)),
    (focal_tversky, lambda pixels, s: (1 - tversky_index(pixels, s)) ** 0.75),
    (sensitivity_specificity, sensitivity),
]


@MODES
@WEIGHTED
@JOINED
@SMOOTH
@pytest.mark.parametrize(("loss", "of_region"), OF_A_REGION, ids=lambda f: f.__name__)
def test_as_a_loop(mode, weighted, joined, smooth, loss, of_region):
    batch = some(mode, weighted=weighted)
    expected = average(
        [
            (of_region(pixels, smooth), class_weight(batch, c))
            for c, pixels in regions(batch, mode, joined=joined)
        ]
    )
    options = {} if loss is sensitivity_specificity else {"smooth": smooth}
    value = batch.loss(loss, mode, batch=joined, **options)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@MODES
@WEIGHTED
@JOINED
@SMOOTH
def test_generalized_dice_as_a_loop(mode, weighted, joined, smooth):
    batch = some(mode, weighted=weighted, ignored=0.1)
    found = list(regions(batch, mode, joined=joined))
    losses = []
    for start in range(0, len(found), 3):  # the three classes of an image
        volumes = [sum(e.weight * e.y for e in pixels) for _, pixels in found[start : start + 3]]
        both = whole = smooth
        for (c, pixels), volume in zip(found[start : start + 3], volumes, strict=True):
            weight = class_weight(batch, c) * (min(volumes) / volume) ** 2
            both += 2 * weight * sum(e.weight * e.p * e.y for e in pixels)
            whole += weight * sum(e.weight * (e.p + e.y) for e in pixels)
        losses.append(1 - both / whole)
    value = batch.loss(generalized_dice, mode, batch=joined, smooth=smooth)
    assert value.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_hand_worked():
    """p of two object pixels 3/4 and 1/4, of two others 1/4 and 1/4: TP 1, FP 1/2, FN 1."""
    high = math.log(3)
    logits = torch.tensor([high, -high, -high, -high]).view(1, 1, 2, 2)
    target = torch.tensor([[[[1, 1], [0, 0]]]])
    given_ = {"mode": "multilabel"}

    def value(loss, **options):
        return loss(logits, target, **given_, **options).item()

    assert value(dice, smooth=0) == pytest.approx(1 - 2 / 3.5)
    assert value(dice) == pytest.approx(1 - 3 / 4.5)
    assert value(jaccard, smooth=0) == pytest.approx(1 - 1 / 2.5)
    assert value(tversky, smooth=0) == pytest.approx(1 - 1 / 1.85)
    assert value(focal_tversky, smooth=0, gamma=2) == pytest.approx(math.sqrt(1 - 1 / 1.85))
    assert value(squared_dice, smooth=0) == pytest.approx(1 - 2 / (2 + 12 / 16))
    assert value(generalized_dice, smooth=0) == pytest.approx(1 - 2 / 3.5)
    # Squared errors 1/16 + 9/16 of the two inside, 1/16 + 1/16 of the two outside.
    expected = 0.05 * (10 / 16) / 2 + 0.95 * (2 / 16) / 2
    assert value(sensitivity_specificity) == pytest.approx(expected)
    entropy = (3 * -math.log(3 / 4) - math.log(1 / 4)) / 4
    assert value(bce_log_dice) == pytest.approx(entropy - math.log(3 / 4.5))
    entropy = (3 * math.log(4 / 3) ** 0.3 + math.log(4) ** 0.3) / 4
    assert value(exp_log) == pytest.approx(0.8 * math.log(1.5) ** 0.3 + 0.2 * entropy)


def test_volumes_weigh_generalized_dice():
    """Classes of 3 and 1 pixels weigh 1/9 and 1. All say p = 1/2: TP 1.5, 0.5; sizes 5 and 3."""
    logits = torch.zeros(1, 2, 2, 2)
    target = torch.tensor([[[0, 0], [0, 1]]])
    loss = generalized_dice(logits, target, mode="multiclass", smooth=0)
    assert loss.item() == pytest.approx(1 - 2 * (1.5 / 9 + 0.5) / (5 / 9 + 3))


@MODES
@JOINED
def test_bce_log_dice_is_its_parts(mode, joined):
    batch = some(mode)
    entropy = batch.loss(cross_entropy if mode == "multiclass" else bce, mode)
    index = 1 - batch.loss(dice, mode, batch=joined)
    value = batch.loss(bce_log_dice, mode, batch=joined)
    torch.testing.assert_close(value, entropy - index.log())


@MODES
@WEIGHTED
@JOINED
def test_exp_log_as_a_loop(mode, weighted, joined):
    batch = some(mode, weighted=weighted)
    found = list(regions(batch, mode, joined=joined))
    region = [(-math.log(dice_index(pixels, 1.0))) ** 0.3 for _, pixels in found]
    entropy = [
        ((-math.log(e.p if e.y else 1 - e.p)) ** 0.3, e.weight * class_weight(batch, c))
        for c, pixels in found
        for e in pixels
        if e.y or mode == "multilabel"
    ]
    expected = 0.8 * sum(region) / len(region) + 0.2 * average(entropy)
    assert batch.loss(exp_log, mode, batch=joined).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [dice, jaccard, tversky], ids=lambda f: f.__name__)
@JOINED
def test_options_of_the_average(loss, joined):
    """Without the background, and without the classes that an image has not."""
    batch = some("multiclass")
    batch.target[0][batch.target[0] == 1] = 2
    of_region = dict(OF_A_REGION)[loss]
    for background, skip_absent in ((False, False), (True, True), (False, True)):
        found = regions(
            batch, "multiclass", joined=joined, background=background, skip_absent=skip_absent
        )
        expected = average(
            [(of_region(pixels, 1.0), class_weight(batch, c)) for c, pixels in found]
        )
        value = batch.loss(
            loss,
            "multiclass",
            batch=joined,
            include_background=background,
            skip_absent=skip_absent,
        )
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_absent_classes():
    """Nothing there: as bad as what is predicted, and perfect where nothing is."""
    target = torch.zeros(1, 1, 2, 2).long()
    half, none = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), -1e4)
    for loss, of_half in ((dice, 1 - 1 / 3), (jaccard, 1 - 1 / 3), (tversky, 1 - 1 / 1.6)):
        assert loss(half, target, mode="multilabel").item() == pytest.approx(of_half)
        assert loss(half, target, mode="multilabel", smooth=0) == 1
        assert loss(none, target, mode="multilabel") == 0
        assert loss(none, target, mode="multilabel", smooth=0) == 0
        assert loss(half, target, mode="multilabel", skip_absent=True) == 0
    assert generalized_dice(half, target, mode="multilabel").item() == pytest.approx(1 - 1 / 3)
    half_squared = sensitivity_specificity(half, target, mode="multilabel").item()
    assert half_squared == pytest.approx(0.95 / 4)


def test_images_without_a_pixel_that_counts_do_not_enter():
    batch = some("multiclass", weighted=False)
    first = Batch(batch.logits[:1], batch.target[:1])
    batch.target[1] = 255
    for name in RATIOS:
        torch.testing.assert_close(
            batch.loss(LOSSES[name], "multiclass"), first.loss(LOSSES[name], "multiclass")
        )


@pytest.mark.parametrize("name", RATIOS)
@MODES
def test_limits(name, mode):
    """All right, and all wrong, where each class is and is not."""
    target = torch.tensor([[[0, 1], [1, 0]]])
    right = 1e4 * (2.0 * target - 1)
    logits = torch.stack([-right, right], 1) if mode == "multiclass" else right[:, None]
    target = target if mode == "multiclass" else target[:, None]
    options = {} if name == "sensitivity_specificity" else {"smooth": 0.0}
    worst = math.log(math.cosh(1)) if name == "log_cosh_dice" else 1.0
    assert LOSSES[name](logits, target, mode=mode, **options) == 0
    assert LOSSES[name](-logits, target, mode=mode, **options).item() == pytest.approx(worst)


@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["multiclass", "multilabel"]),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
    smooth=st.sampled_from([0.0, 1e-5, 1.0]),
    joined=st.booleans(),
)
@settings(max_examples=40)
def test_ranges(seed, mode, scale, smooth, joined):
    batch = some(mode, seed=seed)
    batch = batch._replace(logits=scale * batch.logits)
    for name in RATIOS:
        options = {} if name == "sensitivity_specificity" else {"smooth": smooth}
        value = batch.loss(LOSSES[name], mode, batch=joined, **options)
        assert 0 <= value <= 1 + 1e-6


class TestSmp:
    """Against segmentation_models_pytorch: counts of the whole batch, of classes that are there.

    Its Dice has half of our ``smooth``.
    """

    @pytest.mark.parametrize("smooth", [0.0, 1.0])
    @pytest.mark.parametrize("mode", ["multiclass", "multilabel", "binary"])
    @WEIGHTED
    @pytest.mark.parametrize("name", ["Dice", "Jaccard", "Tversky"])
    def test_equal(self, smooth, mode, weighted, name):
        smp = pytest.importorskip("segmentation_models_pytorch")
        ours = "multilabel" if mode == "binary" else mode
        batch = some(ours, classes=1 if mode == "binary" else 3)._replace(pixel_weights=None)
        if not weighted or mode == "binary":
            batch = batch._replace(class_weights=None)
        shared = {"ignore_index": 255, "smooth": smooth}
        if batch.class_weights is not None:
            shared["class_weights"] = batch.class_weights.tolist()
        if name == "Dice":
            value = batch.loss(dice, ours, batch=True, smooth=2 * smooth)
            theirs = smp.losses.DiceLoss(mode, **shared)
        elif name == "Jaccard":
            value = batch.loss(jaccard, ours, batch=True, smooth=smooth)
            theirs = smp.losses.JaccardLoss(mode, **shared)
        else:
            value = batch.loss(tversky, ours, batch=True, smooth=smooth)
            theirs = smp.losses.TverskyLoss(mode, alpha=0.3, beta=0.7, **shared)
        torch.testing.assert_close(value, theirs(batch.logits, batch.target))

    def test_focal_tversky(self):
        """Theirs is the power of the mean over classes, ours the mean of the powers: one class."""
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multilabel", classes=1, weighted=False)
        theirs = smp.losses.TverskyLoss(
            "binary", alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0, ignore_index=255
        )
        value = batch.loss(focal_tversky, "multilabel", batch=True)
        torch.testing.assert_close(value, theirs(batch.logits, batch.target))
