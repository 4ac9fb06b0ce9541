"""Losses of single pixels against loops in float64, hand-worked cases, torch and smp."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from instseg.losses.segmentation import bce, cross_entropy, focal, top_k
from tests.losses.segmentation_cases import Batch, average, class_weight, positions, some

MODES = pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])


def truths(batch: Batch, mode: str) -> list[tuple[float, int, float]]:
    """(probability of the truth, label, weight) of every pixel, of every channel if multilabel."""
    found = []
    for b in range(len(batch.logits)):
        for c in range(batch.logits.shape[1]):
            for _, e in positions(batch, mode, b, c):
                if mode == "multilabel" or e.y:
                    p = e.p if e.y else 1 - e.p
                    found.append((p, e.y, e.weight * class_weight(batch, c)))
    return found


def test_hand_worked_cross_entropy():
    """p = 1/2 of weight 1 and p = 3/4 of weight 3: (ln 2 + 3 ln 4/3) / 4."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 2, 1, 2)
    loss = cross_entropy(
        logits,
        torch.tensor([[[1, 0]]]),
        mode="multiclass",
        pixel_weights=torch.tensor([[[1.0, 3.0]]]),
    )
    assert loss.item() == pytest.approx((math.log(2) + 3 * math.log(4 / 3)) / 4)


@WEIGHTED
def test_cross_entropy_is_torchs(weighted):
    batch = some("multiclass", weighted=weighted)._replace(pixel_weights=None)
    theirs = F.cross_entropy(
        batch.logits, batch.target, weight=batch.class_weights, ignore_index=255
    )
    torch.testing.assert_close(batch.loss(cross_entropy, "multiclass"), theirs)


@WEIGHTED
def test_cross_entropy_as_a_loop(weighted):
    batch = some("multiclass", weighted=weighted)
    expected = average([(-math.log(p), w) for p, _, w in truths(batch, "multiclass")])
    assert batch.loss(cross_entropy, "multiclass").item() == pytest.approx(expected, rel=1e-5)


@WEIGHTED
@pytest.mark.parametrize("positive_weight", [1.0, 2.5])
@pytest.mark.parametrize("classes", [1, 3])
def test_bce_as_a_loop(weighted, positive_weight, classes):
    batch = some("multilabel", weighted=weighted, classes=classes)
    expected = average(
        [
            (-math.log(p) * (positive_weight if y else 1), w)
            for p, y, w in truths(batch, "multilabel")
        ]
    )
    loss = batch.loss(bce, "multilabel", positive_weight=positive_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@MODES
@WEIGHTED
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_as_a_loop(mode, weighted, gamma):
    batch = some(mode, weighted=weighted)
    expected = average([(-((1 - p) ** gamma) * math.log(p), w) for p, _, w in truths(batch, mode)])
    assert batch.loss(focal, mode, gamma=gamma).item() == pytest.approx(expected, rel=1e-5)


def test_alpha_of_focal_as_a_loop():
    batch = some("multilabel")
    expected = average(
        [
            (-(0.25 if y else 0.75) * (1 - p) ** 2 * math.log(p), w)
            for p, y, w in truths(batch, "multilabel")
        ]
    )
    loss = batch.loss(focal, "multilabel", alpha=0.25)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@MODES
@WEIGHTED
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 1.0])
def test_top_k_as_a_loop(mode, weighted, fraction):
    batch = some(mode, weighted=weighted)
    entropies = [(-math.log(p), w) for p, _, w in truths(batch, mode)]
    hardest = sorted(entropies, key=lambda e: -e[0] * e[1])
    expected = average(hardest[: math.ceil(fraction * len(hardest))])
    assert batch.loss(top_k, mode, fraction=fraction).item() == pytest.approx(expected, rel=1e-5)


@MODES
@WEIGHTED
def test_all_of_top_k_is_the_cross_entropy(mode, weighted):
    batch = some(mode, weighted=weighted)
    whole = batch.loss(cross_entropy if mode == "multiclass" else bce, mode)
    torch.testing.assert_close(batch.loss(top_k, mode, fraction=1.0), whole)
    assert batch.loss(top_k, mode, fraction=0.2) > whole or weighted


@pytest.mark.parametrize("size", [20.0, 1e4])
def test_limits(size):
    """A confident logit costs nothing where right, its size where wrong; of two classes twice."""
    target = torch.tensor([[[0, 1, 1]]])
    right = size * (2.0 * target - 1)
    for loss in (bce, focal, top_k):
        for sign, expected in ((1, 0), (-1, size)):
            value = loss(sign * right[:, None], target[:, None], mode="multilabel").item()
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for loss in (cross_entropy, focal, top_k):
        for sign, expected in ((1, 0), (-1, 2 * size)):
            logits = sign * torch.stack([-right, right], dim=1)
            value = loss(logits, target, mode="multiclass").item()
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_focal_is_precise_where_right():
    """(1 - p_t)^2 -ln p_t is about (1 - p_t)^3 near p_t = 1, where 1 - p_t is exp(-x)."""
    for x in (12.0, 20.0):
        binary = focal(
            torch.full((1, 1, 1, 1), x), torch.ones(1, 1, 1, 1).long(), mode="multilabel"
        )
        assert binary.item() == pytest.approx(math.exp(-3 * x), rel=1e-3)
        logits = torch.tensor([x, 0.0]).view(1, 2, 1, 1)
        classes = focal(logits, torch.zeros(1, 1, 1).long(), mode="multiclass")
        doubt = math.exp(-x) / (1 + math.exp(-x))
        # log_softmax in float32 rounds the entropy of the sure class to a multiple of 6e-8.
        assert classes.item() == pytest.approx(doubt**3, rel=0.1, abs=doubt**2 * 6e-8)


class TestSmp:
    """Against segmentation_models_pytorch."""

    @pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
    @pytest.mark.parametrize("alpha", [None, 0.25])
    def test_binary_focal(self, gamma, alpha):
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multilabel", weighted=False, classes=1)
        theirs = smp.losses.FocalLoss("binary", alpha=alpha, gamma=gamma, ignore_index=255)
        torch.testing.assert_close(
            batch.loss(focal, "multilabel", alpha=alpha, gamma=gamma),
            theirs(batch.logits, batch.target),
        )

    def test_multilabel_focal(self):
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multilabel", ignored=0)._replace(pixel_weights=None)
        theirs = smp.losses.FocalLoss("multilabel", class_weights=batch.class_weights.tolist())
        torch.testing.assert_close(
            batch.loss(focal, "multilabel"), theirs(batch.logits, batch.target)
        )

    def test_softmax_focal(self):
        module = pytest.importorskip("segmentation_models_pytorch.losses._functional")
        batch = some("multiclass", weighted=False, ignored=0)
        theirs = module.softmax_focal_loss_with_logits(batch.logits, batch.target, gamma=2.0)
        torch.testing.assert_close(batch.loss(focal, "multiclass"), theirs)

    def test_soft_entropies(self):
        smp = pytest.importorskip("segmentation_models_pytorch")
        batch = some("multilabel", weighted=False, ignored=0)
        theirs = smp.losses.SoftBCEWithLogitsLoss()(batch.logits, batch.target.float())
        torch.testing.assert_close(batch.loss(bce, "multilabel"), theirs)
