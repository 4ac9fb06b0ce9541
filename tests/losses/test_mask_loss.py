"""The mask loss with soft Dice; its cross-entropy alone is tested in test_rcnn.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.losses import mask_loss


def loss_loops(logits: Tensor, targets: Tensor, bce: float, dice: float) -> float:
    """Cross-entropy of all pixels; V-Net's Dice of each mask, with one pixel added to both sums."""
    cross_entropy, dices = [], []
    for mask, wanted in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        overlap, both = 0.0, 0.0
        for row, wanted_row in zip(mask, wanted, strict=True):
            for x, t in zip(row, wanted_row, strict=True):
                p = 1 / (1 + math.exp(-x))
                cross_entropy.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
                overlap += p * t
                both += p * p + t * t
        dices.append(1 - (2 * overlap + 1) / (both + 1))
    return bce * float(np.mean(cross_entropy)) + dice * float(np.mean(dices))


@pytest.mark.parametrize(("bce", "dice"), [(1, 0), (0, 1), (1, 1), (0.5, 2)])
def test_equal_to_plain_loops(bce, dice):
    logits, targets = torch.randn(3, 8, 8) * 2, torch.rand(3, 8, 8)
    targets[1] = 0
    got = mask_loss(logits, targets, bce=bce, dice=dice)
    assert got.item() == pytest.approx(loss_loops(logits, targets, bce, dice), rel=1e-5)


def test_hand_worked_dice():
    """Probabilities 1/2 and 0 where 1 and 0 are wanted: 1 - (2/2 + 1) / (1/4 + 1 + 1)."""
    logits, targets = torch.tensor([[[0.0, -40.0]]]), torch.tensor([[[1.0, 0.0]]])
    loss = mask_loss(logits, targets, bce=0, dice=1)
    assert loss.item() == pytest.approx(1 - 2 / 2.25)


def test_default_is_the_cross_entropy_to_the_bit():
    logits, targets = torch.randn(3, 28, 28), torch.rand(3, 28, 28)
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    assert torch.equal(mask_loss(logits, targets), total / targets.numel())


def test_limits():
    """0 at the targets even where they are fractions, and near 1 at their opposite."""
    fractions = torch.rand(4, 28, 28) * 0.98 + 0.01
    at_best = mask_loss(fractions.logit(), fractions, bce=0, dice=1)
    assert at_best.item() == pytest.approx(0, abs=1e-5)
    sure = (fractions > 0.5).float()
    at_worst = mask_loss(40 - 80 * sure, sure, bce=0, dice=1)
    assert at_worst.item() == pytest.approx(1, abs=2e-3)
    empty = mask_loss(torch.full((1, 28, 28), -40.0), torch.zeros(1, 28, 28), bce=0, dice=1)
    assert empty.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [-1e4, -1.0, 0.0, 1.0, 1e4])
@pytest.mark.parametrize("wanted", [0.0, 1.0], ids=["empty", "full"])
def test_finite_in_float32(dtype, scale, wanted):
    logits = torch.full((2, 28, 28), scale, dtype=dtype, requires_grad=True)
    loss = mask_loss(logits, torch.full((2, 28, 28), wanted), dice=1)
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_no_rois():
    logits = torch.zeros(0, 56, 56, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 56, 56), dice=1)
    assert loss == 0
    loss.backward()
    assert logits.grad.shape == (0, 56, 56)
