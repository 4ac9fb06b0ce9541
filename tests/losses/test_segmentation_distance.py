"""Losses of distances against loops in float64, hand-worked cases and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from instseg.losses.segmentation import (
    boundary,
    boundary_distance,
    hausdorff,
    signed_distance,
)
from tests.losses.segmentation_cases import Batch, average, class_weight, positions, some

WEIGHTED = pytest.mark.parametrize("weighted", [False, True])

Grid = list[list[bool]]


def nearest(mask: Grid, i: int, j: int) -> float:
    """Distance to the nearest pixel of the other value; 0 if there is none."""
    found = [
        math.dist((i, j), (k, m))
        for k, row in enumerate(mask)
        for m, value in enumerate(row)
        if value != mask[i][j]
    ]
    return min(found, default=0.0)


def masks_of(batch: Batch, mode: str, image: int, c: int) -> tuple[Grid, Grid]:
    """Where the class is in the truth and in the prediction."""
    height, width = batch.logits.shape[2:]
    found = dict(positions(batch._replace(target=batch.target % 255), mode, image, c))
    truth = dict(positions(batch, mode, image, c))
    cells = [[(i, j) for j in range(width)] for i in range(height)]
    return (
        [[at in truth and truth[at].y == 1 for at in row] for row in cells],
        [[found[at].p > 0.5 for at in row] for row in cells],
    )


@WEIGHTED
@pytest.mark.parametrize("loss", [boundary, hausdorff])
@pytest.mark.parametrize(
    ("mode", "background"), [("multiclass", False), ("multiclass", True), ("multilabel", True)]
)
def test_as_a_loop(mode, weighted, loss, background):
    batch = some(mode, weighted=weighted, seed=1)
    losses = []
    for b in range(2):
        for c in range(0 if background else 1, 3):
            truth, prediction = masks_of(batch, mode, b, c)
            for (i, j), e in positions(batch, mode, b, c):
                d = nearest(truth, i, j)
                if loss is boundary:
                    value = e.p * (1 - d if truth[i][j] and d else d)
                else:
                    value = (e.p - e.y) ** 2 * (d**2 + nearest(prediction, i, j) ** 2)
                losses.append((value, e.weight * class_weight(batch, c)))
    value = batch.loss(loss, mode, include_background=background)
    assert value.item() == pytest.approx(average(losses), rel=1e-5)


def case(row: list[float], truth: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(row).view(1, 1, 1, -1), torch.tensor(truth).view(1, 1, 1, -1)


def test_hand_worked():
    """A row of five pixels, the middle three of the object, the first two predicted (p = 3/4)."""
    high = math.log(3)
    logits, target = case([high, high, -high, -high, -high], [0, 1, 1, 1, 0])
    # Signed distances 1, 0, -1, 0, 1.
    loss = boundary(logits, target, mode="multilabel").item()
    assert loss == pytest.approx((3 / 4 - 1 / 4 + 1 / 4) / 5)
    # Distances to the truth's boundary 1 1 2 1 1, to the prediction's 2 1 1 2 3.
    errors = [9 / 16, 1 / 16, 9 / 16, 9 / 16, 1 / 16]
    squares = [1 + 4, 1 + 1, 4 + 1, 1 + 4, 1 + 9]
    expected = sum(e * d for e, d in zip(errors, squares, strict=True)) / 5
    assert hausdorff(logits, target, mode="multilabel").item() == pytest.approx(expected)
    sums = [1 + 2, 1 + 1, 2 + 1, 1 + 2, 1 + 3]
    expected = sum(e * d for e, d in zip(errors, sums, strict=True)) / 5
    loss = hausdorff(logits, target, mode="multilabel", alpha=1.0).item()
    assert loss == pytest.approx(expected)


def test_limits():
    """Perfect: the sum of the distances inside, and 0; worst: that outside, and all of both."""
    row, truth = [-1e4, 1e4, 1e4, 1e4, -1e4, -1e4], [0, 1, 1, 1, 0, 0]
    logits, target = case(row, truth)
    assert boundary(logits, target, mode="multilabel").item() == pytest.approx(-1 / 6)
    assert boundary(-logits, target, mode="multilabel").item() == pytest.approx((1 + 1 + 2) / 6)
    assert hausdorff(logits, target, mode="multilabel") == 0
    both = 2 * (1 + 1 + 4 + 1 + 1 + 4) / 6
    assert hausdorff(-logits, target, mode="multilabel").item() == pytest.approx(both)


@pytest.mark.parametrize("value", [0, 1])
def test_masks_without_a_boundary(value):
    target = torch.full((1, 1, 3, 4), value)
    logits = torch.full((1, 1, 3, 4), -0.5).requires_grad_()
    assert boundary(logits, target, mode="multilabel") == 0
    assert hausdorff(logits, target, mode="multilabel") == 0
    logits = torch.randn(1, 1, 3, 4)  # the prediction has one
    assert hausdorff(logits, target, mode="multilabel") > 0


def test_far_errors_cost_more():
    """The same false pixel at 1 and at 6 pixels from the object."""
    target = torch.zeros(1, 1, 9, 9).long()
    target[..., :3] = 1
    near, far = (50 * (2.0 * target - 1) for _ in range(2))
    near[..., 4, 3], far[..., 4, 8] = 50, 50
    for loss in (boundary, hausdorff):
        a, b = (loss(x, target, mode="multilabel") for x in (near, far))
        assert a < b


def test_worked_distances():
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]).bool()
    r = math.sqrt(2)
    torch.testing.assert_close(
        boundary_distance(mask),
        torch.tensor([[r, 1, 1, 1, r], [1, 1, 1, 1, 1], [1, 1, 2, 1, 1], [1, 1, 2, 1, 1]]),
    )
    torch.testing.assert_close(
        signed_distance(mask),
        torch.tensor([[r, 1, 1, 1, r], [1, 0, 0, 0, 1], [1, 0, -1, 0, 1], [1, 0, -1, 0, 1]]),
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (40, 23), (300, 200)])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_distances_are_scipys(size, share):
    masks = torch.rand(2, 3, *size) < share
    distances, signed = boundary_distance(masks), signed_distance(masks)
    assert distances.shape == signed.shape == masks.shape
    for index in np.ndindex(2, 3):
        mask = masks[index].numpy()
        theirs = np.zeros(size)
        if mask.any() and not mask.all():
            inside, outside = (ndimage.distance_transform_edt(m) for m in (mask, ~mask))
            theirs = inside + outside
        np.testing.assert_allclose(distances[index].numpy(), theirs, rtol=1e-6)
        expected = np.where(mask, np.minimum(1 - theirs, 0), theirs)
        np.testing.assert_allclose(signed[index].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_full_and_empty_masks_have_no_distances():
    masks = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)]).bool()
    assert not boundary_distance(masks).any()
    assert not signed_distance(masks).any()


def test_alpha_zero_is_the_squared_error_where_there_are_boundaries():
    batch = some("multilabel", weighted=False, ignored=0, seed=2)
    loss = batch.loss(hausdorff, "multilabel", alpha=0.0)
    expected = 2 * (batch.logits.sigmoid() - batch.target).square().mean()
    torch.testing.assert_close(loss, expected)
