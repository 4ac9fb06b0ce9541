from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from instseg.losses.ssd import hard_negatives, multibox_losses


def test_hand_worked_hard_negatives():
    """One positive: the three worst negatives. Two of five: all three negatives. None: none."""
    losses = torch.tensor([[9.0, 1, 5, 3, 4], [1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]])
    positive = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    hard = hard_negatives(losses, positive, ~positive)
    assert hard.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


def test_ignored_boxes_are_no_negatives():
    losses = torch.tensor([[9.0, 8, 7, 1]])
    positive = torch.tensor([[False, False, False, True]])
    negative = torch.tensor([[False, True, True, False]])
    assert hard_negatives(losses, positive, negative, ratio=1.0).tolist() == [
        [False, True, False, False]
    ]
    assert hard_negatives(losses, positive, negative).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.0, 2.5])
def test_hard_negatives_as_a_plain_loop(ratio):
    generator = torch.Generator().manual_seed(int(ratio * 10))
    losses = torch.rand(6, 50, generator=generator)
    kind = torch.randint(0, 10, (6, 50), generator=generator)
    positive, negative = kind == 0, kind > 2
    expected = torch.zeros(6, 50, dtype=torch.bool)
    for b in range(6):
        order = sorted((a for a in range(50) if negative[b, a]), key=lambda a: -losses[b, a].item())
        for a in order[: math.ceil(ratio * int(positive[b].sum()))]:
            expected[b, a] = True
    assert torch.equal(hard_negatives(losses, positive, negative, ratio=ratio), expected)


def test_hand_worked_losses():
    """Two classes and four boxes: one positive, two negatives that count (ratio 2), one ignored.

    Cross-entropy of equal logits of three columns is log 3; of (log 2, 0, 0) for the background
    log 2. Smooth L1 of the differences 2, 0.5, 0, -1 is 1.5 + 0.125 + 0 + 0.5.
    """
    logits = torch.zeros(1, 5, 3)
    logits[0, 1, 0] = math.log(2)
    logits[0, 2, 0] = 50.0
    logits[0, 4] = torch.tensor([0.0, 90.0, 0.0])
    labels = torch.tensor([[2, 0, 0, 0, -1]])
    offsets = torch.zeros(1, 5, 4)
    offsets[0, 0] = torch.tensor([2.0, 0.5, 1.0, 0.0])
    classification, regression = multibox_losses(
        logits, offsets, labels, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), negative_ratio=2.0
    )
    assert classification.item() == pytest.approx(math.log(3) + math.log(3) + math.log(2))
    assert regression.item() == pytest.approx(2.125)


def test_as_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.randint(-1, 12, (3, 40), generator=generator) - 7).clamp(min=-1)
    labels[2] = labels[2].clamp(max=0)  # an image without positives
    logits = torch.randn(3, 40, 5, generator=generator) * 2
    offsets = torch.randn(3, 40, 4, generator=generator)
    targets = torch.randn(int((labels > 0).sum()), 4, generator=generator)

    classes, boxes, p = 0.0, 0.0, 0
    for b in range(3):
        negatives = []
        row, positives = logits[b].double().numpy(), int((labels[b] > 0).sum())
        for a in range(40):
            entropy = np.log(np.exp(row[a]).sum()) - row[a, labels[b, a]]
            if labels[b, a] == 0:
                negatives.append(entropy)
            elif labels[b, a] > 0:
                classes += entropy
                for d in (offsets[b, a] - targets[p]).double().abs().tolist():
                    boxes += 0.5 * d * d if d < 1 else d - 0.5
                p += 1
        classes += sum(sorted(negatives, reverse=True)[: 3 * positives])

    classification, regression = multibox_losses(logits, offsets, labels, targets)
    assert p == len(targets) > 10
    assert classification.item() == pytest.approx(classes / p, rel=1e-5)
    assert regression.item() == pytest.approx(boxes / p, rel=1e-5)


@pytest.mark.parametrize("label", [0, -1], ids=["negative", "ignored"])
def test_nothing_positive_is_zero_with_gradients(label):
    logits = torch.randn(2, 6, 3, requires_grad=True)
    offsets = torch.randn(2, 6, 4, requires_grad=True)
    labels = torch.full((2, 6), label)
    classification, regression = multibox_losses(logits, offsets, labels, torch.zeros(0, 4))
    assert classification == regression == 0
    (classification + regression).backward()
    assert logits.grad.abs().max() == offsets.grad.abs().max() == 0


def test_only_what_counts_has_gradients():
    logits = torch.zeros(1, 5, 3)
    logits[0, 4, 0] = 9.0
    logits.requires_grad_()
    offsets = torch.ones(1, 5, 4, requires_grad=True)
    labels = torch.tensor([[1, 0, -1, 0, 0]])
    losses = multibox_losses(logits, offsets, labels, torch.zeros(1, 4), negative_ratio=2.0)
    sum(losses).backward()
    assert logits.grad[0].abs().sum(1).gt(0).tolist() == [True, True, False, True, False]
    assert offsets.grad[0].abs().sum(1).gt(0).tolist() == [True, False, False, False, False]


def test_half_precision_gives_float32():
    logits = torch.randn(1, 5, 3, dtype=torch.bfloat16)
    offsets = torch.randn(1, 5, 4, dtype=torch.bfloat16)
    labels = torch.tensor([[1, 0, 0, 0, 0]])
    for loss in multibox_losses(logits, offsets, labels, torch.zeros(1, 4)):
        assert loss.dtype == torch.float32


def test_a_loss_that_is_not_a_number_shows():
    logits = torch.zeros(1, 3, 2)
    logits[0, 2] = torch.nan
    labels = torch.tensor([[1, 0, 0]])
    classification, _ = multibox_losses(
        logits, torch.zeros(1, 3, 4), labels, torch.zeros(1, 4), negative_ratio=1.0
    )
    assert classification.isnan()
