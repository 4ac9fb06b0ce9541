"""Overlaps of boxes, pairwise and row by row."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given
from hypothesis import strategies as st

from instseg.ops import boxes as ops

PAIRWISE = {
    "box_iou": ops.box_iou,
    "generalized_box_iou": ops.generalized_box_iou,
    "distance_box_iou": ops.distance_box_iou,
    "complete_box_iou": ops.complete_box_iou,
}
ELEMENTWISE = {name: getattr(ops, f"{name}_elementwise") for name in PAIRWISE}


def random_boxes(n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 40
    sides = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 30 + 0.5
    return torch.cat([corner, corner + sides], dim=1).to(dtype)


def loop(name: str, a: list[float], b: list[float]) -> float:
    """One pair, from the papers' definitions."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0) * max(high, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    iou = inter / union
    hull_w, hull_h = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if name == "box_iou":
        return iou
    if name == "generalized_box_iou":
        return iou - (hull_w * hull_h - union) / (hull_w * hull_h)
    apart = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    diou = iou - apart / (hull_w**2 + hull_h**2)
    if name == "distance_box_iou":
        return diou
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return diou - v * v / (1 - iou + v)


@pytest.mark.parametrize("name", PAIRWISE)
def test_equals_the_definition_and_torchvision(name):
    a, b = random_boxes(12, 1), random_boxes(9, 2)
    got = PAIRWISE[name](a, b)
    wanted = [[loop(name, x, y) for y in b.tolist()] for x in a.tolist()]
    assert torch.allclose(got, torch.tensor(wanted, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(got, getattr(tv, name)(a, b), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradient_is_torchvisions(name):
    grads = []
    for function in (PAIRWISE[name], getattr(tv, name)):
        a, b = random_boxes(7, 3).requires_grad_(), random_boxes(5, 4).requires_grad_()
        weight = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
        (function(a, b) * weight).sum().backward()
        grads.append((a.grad, b.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou"])
def test_gradcheck(name):
    a, b = random_boxes(4, 5).requires_grad_(), random_boxes(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(PAIRWISE[name], (a, b))


@pytest.mark.parametrize("name", PAIRWISE)
def test_elementwise_is_the_diagonal(name):
    a, b = random_boxes(20, 7, torch.float32), random_boxes(20, 8, torch.float32)
    assert torch.equal(ELEMENTWISE[name](a, b), PAIRWISE[name](a, b).diagonal())
    assert ELEMENTWISE[name](a[:0], b[:0]).shape == (0,)


DEGENERATE = [[3.0, 3, 3, 3], [3, 3, 3, 9], [1, 3, 8, 3], [0, 0, 8, 8], [20, 20, 20, 20]]


@pytest.mark.parametrize("name", PAIRWISE)
def test_boxes_without_area_give_numbers_and_gradients(name):
    a, b = (torch.tensor(DEGENERATE, requires_grad=True) for _ in range(2))
    value = PAIRWISE[name](a, b)
    value.sum().backward()
    assert value.isfinite().all()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()
    assert ops.box_iou(a, a).diagonal().tolist() == [0, 0, 0, 1, 0]
    # Nothing lies between a point or a line and itself.
    itself = PAIRWISE[name](a, a).diagonal()
    assert itself.tolist() == [0, 0, 0, 1, 0]


@given(st.lists(st.integers(-3, 3), min_size=8, max_size=8))
def test_extreme_and_inverted_boxes_overlap_in_the_unit_range(corners):
    boxes = torch.tensor(corners, dtype=torch.float32).view(2, 4) * 1e8
    iou = ops.box_iou(boxes[:1], boxes[1:])
    assert 0 <= iou.item() <= 1
    assert ops.box_ioa(boxes[:1], boxes[1:]).item() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    a, b = random_boxes(6, 1).mul(30).to(dtype), random_boxes(5, 2).mul(30).to(dtype)
    for name, function in PAIRWISE.items():
        got = function(a, b)
        assert got.dtype == torch.float32
        assert torch.equal(got, function(a.float(), b.float())), name
    # 900 * 900 is above the range of float16.
    assert ops.box_area(torch.tensor([[0, 0, 900, 900]], dtype=dtype)).item() == pytest.approx(
        810000, rel=0.01
    )


def test_crowd_overlap_by_hand():
    boxes = torch.tensor([[1.0, 1, 3, 3], [0, 0, 8, 8], [2, 2, 2, 5]])
    assert ops.box_ioa(boxes, torch.tensor([[0.0, 0, 4, 4]]))[:, 0].tolist() == [1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("box_iou", 3.3),
        ("generalized_box_iou", 4.3),
        ("distance_box_iou", 4.3),
        ("complete_box_iou", 5.1),
    ],
)
def test_memory_is_a_few_matrices(name, arrays):
    """What lives at once, counted by the profiler's allocations and releases."""
    a, b = random_boxes(400, 1, torch.float32), random_boxes(500, 2, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        PAIRWISE[name](a, b)
    living = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            living += event.nbytes()
            peak = max(peak, living)
    assert 400 * 500 * 4 < peak < arrays * 400 * 500 * 4


def test_compiles_without_breaks_and_without_boxes():
    a, b = random_boxes(6, 1, torch.float32), random_boxes(5, 2, torch.float32)
    for name, function in PAIRWISE.items():
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(a, b), function(a, b), atol=1e-6), name
        assert function(a[:0], b).shape == (0, 5)
        assert function(a, b[:0]).shape == (6, 0)


@pytest.mark.parametrize("function", [*PAIRWISE.values(), *ELEMENTWISE.values(), ops.box_ioa])
def test_refuses_what_are_no_boxes(function):
    good = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"must be \[N, 4\], got \[3, 5\]"):
        function(torch.zeros(3, 5), good)
    with pytest.raises(ValueError, match=r"must be \[N, 4\], got \[4\]"):
        function(good, torch.zeros(4))
    with pytest.raises(TypeError, match=r"must be a floating tensor, got torch.int64"):
        function(good, good.long())
    with pytest.raises(ValueError, match="must be on the device"):
        function(good, good.to("meta"))


@pytest.mark.parametrize("function", ELEMENTWISE.values())
def test_elementwise_refuses_other_lengths(function):
    with pytest.raises(ValueError, match="boxes2 must be as many as boxes1, 3, got 1"):
        function(torch.zeros(3, 4), torch.zeros(1, 4))
