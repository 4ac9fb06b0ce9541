from __future__ import annotations

import math

import pytest
import torch

from instseg.losses.prototype_masks import occurrence, prototype_mask_losses


def cross_entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def test_hand_worked():
    """Two prototypes on a grid of one cell, one object: logits 2 * 3 - 1 * 6 = 0, and log 3."""
    prototypes = torch.tensor([[[[3.0]], [[6.0]]]])
    coefficients = torch.tensor([[2.0, -1.0], [math.log(3) / 3, 0.0]])
    losses = prototype_mask_losses(
        prototypes, coefficients, torch.tensor([0, 0]), torch.ones(1, 1, 1)
    )
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3)])


def test_equal_to_the_definition():
    """Objects without a positive, and positives in any order, are as they should be."""
    objects = [2, 0, 2, 3, 0, 2]
    prototypes, coefficients = torch.rand(4, 3, 5, 5), torch.randn(6, 3)
    targets = torch.rand(4, 5, 5)
    losses = prototype_mask_losses(prototypes, coefficients, torch.tensor(objects), targets)
    maps, weights, wanted = (v.double().tolist() for v in (prototypes, coefficients, targets))
    for loss, row, u in zip(losses.tolist(), weights, objects, strict=True):
        total = 0.0
        for y in range(5):
            for x in range(5):
                logit = sum(c * maps[u][k][y][x] for k, c in enumerate(row))
                total += cross_entropy(logit, wanted[u][y][x])
        assert loss == pytest.approx(total / 25, rel=1e-5)


def test_gradients_are_those_of_single_products():
    prototypes = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    objects, targets = torch.tensor([1, 0, 1, 1, 0]), torch.rand(2, 4, 4)
    prototype_mask_losses(prototypes, coefficients, objects, targets).sum().backward()
    got = prototypes.grad.clone(), coefficients.grad.clone()
    prototypes.grad = coefficients.grad = None
    logits = torch.einsum("pk,pkhw->phw", coefficients, prototypes[objects])
    p, t = logits.sigmoid(), targets[objects]
    (-t * p.log() - (1 - t) * (1 - p).log()).mean(dim=(1, 2)).sum().backward()
    for a, b in zip(got, (prototypes.grad, coefficients.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nothing_is_nothing_with_gradients():
    prototypes = torch.rand(0, 3, 4, 4, requires_grad=True)
    coefficients = torch.rand(0, 3, requires_grad=True)
    losses = prototype_mask_losses(
        prototypes, coefficients, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4)
    )
    losses.sum().backward()
    assert losses.shape == (0,)
    assert prototypes.grad is not None
    assert coefficients.grad is not None


@pytest.mark.parametrize("values", [[], [4], [3, 3, 3], [5, 1, 5, 5, 1, 0]])
def test_occurrence(values):
    expected = [values[:i].count(v) for i, v in enumerate(values)]
    assert occurrence(torch.tensor(values, dtype=torch.int64)).tolist() == expected
