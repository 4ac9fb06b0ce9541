"""Matrix NMS against its loop."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instseg.ops.matrix_nms import matrix_nms

# The package's attribute of this name may be the function.
module = importlib.import_module("instseg.ops.matrix_nms")


def scene(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks of overlapping rectangles, some empty and some twice, with few classes and scores."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(n, 9, 11, dtype=torch.bool)
    for mask in masks:
        top, left, height, width = torch.randint(0, 7, (4,), generator=generator).tolist()
        mask[top : top + height, left : left + width] = True
    if n > 1:
        masks[-1] = masks[0]
    labels = torch.randint(0, 2, (n,), generator=generator)
    return masks, labels, torch.randint(0, 10, (n,), generator=generator) / 10


def mask_iou(a: torch.Tensor, b: torch.Tensor) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def loop(masks, labels, scores, kernel, sigma):
    """The paper's equations, mask by mask."""

    def f(x: float) -> float:
        return math.exp(-(x**2) / sigma) if kernel == "gaussian" else 1 - x

    rank = {i: r for r, i in enumerate(sorted(range(len(masks)), key=lambda i: (-scores[i], i)))}

    def better(j: int) -> list[int]:
        return [i for i in rank if rank[i] < rank[j] and labels[i] == labels[j]]

    lowered = []
    for j, score in enumerate(scores.tolist()):
        decay = 1.0
        for i in better(j):
            own = f(max((mask_iou(masks[k], masks[i]) for k in better(i)), default=0.0))
            if own > 0:
                decay = min(decay, f(mask_iou(masks[i], masks[j])) / own)
        lowered.append(score * decay)
    return lowered


@given(
    st.integers(0, 12),
    st.integers(0, 10**6),
    st.sampled_from(["gaussian", "linear"]),
    st.sampled_from([0.1, 0.5, 2.0]),
)
def test_equals_the_loop(n, seed, kernel, sigma):
    masks, labels, scores = scene(n, seed)
    scores = scores.double()
    wanted = loop(masks, labels, scores, kernel, sigma)
    got = matrix_nms(masks.double(), labels, scores, kernel, sigma)
    assert got.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    narrow = matrix_nms(masks, labels, scores.float(), kernel, sigma)
    assert narrow.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_by_hand():
    masks = torch.zeros(3, 1, 4, dtype=torch.bool)
    masks[0, 0, :4] = masks[1, 0, :2] = masks[2, 0, :4] = True
    labels, scores = torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.8, 0.7])
    assert matrix_nms(masks, labels, scores, "linear").tolist() == pytest.approx([0.9, 0.4, 0.7])
    assert matrix_nms(masks, labels * 0, scores, "linear").tolist() == pytest.approx([0.9, 0.4, 0])
    gaussian = matrix_nms(masks, labels, scores, sigma=0.25)
    assert gaussian.tolist() == pytest.approx([0.9, 0.8 * math.exp(-1), 0.7])


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_known_overlaps_give_the_same(kernel):
    masks, labels, scores = scene(10, 4)
    iou = torch.tensor([[mask_iou(a, b) for b in masks] for a in masks])
    assert torch.allclose(
        matrix_nms(iou, labels, scores, kernel), matrix_nms(masks, labels, scores, kernel)
    )


def test_pieces_and_autocast_change_nothing(monkeypatch):
    masks, labels, scores = scene(10, 6)
    masks = masks.repeat(1, 20, 20)  # areas beyond what bfloat16 counts exactly
    whole = matrix_nms(masks, labels, scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matrix_nms(masks, labels, scores), whole)
    monkeypatch.setattr(module, "_PIXELS", 70)
    assert torch.equal(matrix_nms(masks, labels, scores), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores(dtype):
    masks, labels, scores = scene(10, 7)
    scores = scores.to(dtype)
    got = matrix_nms(masks, labels, scores)
    assert got.dtype == dtype
    assert torch.equal(got, matrix_nms(masks.to(dtype), labels, scores.float()).to(dtype))


def test_opcheck():
    masks, labels, scores = scene(6, 2)
    torch.library.opcheck(
        torch.ops.instseg.matrix_nms.default, (masks, labels, scores, "linear", 0.5)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"masks": torch.zeros(2)}, ValueError, r"masks must be \[N, H, W\].*got \[2\]"),
        ({"masks": torch.zeros(2, 3)}, ValueError, r"or \[N, N\] of pairwise IoU, got \[2, 3\]"),
        ({"masks": torch.zeros(2, 2).bool()}, TypeError, "masks, where they are pairwise IoU"),
        ({"masks": torch.zeros(2, 3, 3).long()}, TypeError, "masks must be a floating tensor"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must be \[2\], got \[3\]"),
        ({"labels": torch.zeros(2)}, TypeError, "labels must be int64, got torch.float32"),
        ({"scores": torch.zeros(2, 1)}, ValueError, r"scores must be \[2\], got \[2, 1\]"),
        ({"scores": torch.zeros(2).long()}, TypeError, "scores must be a floating tensor"),
        ({"scores": torch.tensor([math.nan, 0])}, ValueError, "scores must be finite, row 0"),
        ({"sigma": -1.0}, ValueError, "sigma must be positive and finite, got -1.0"),
        ({"kernel": "box"}, ValueError, "kernel must be one of gaussian, linear, got 'box'"),
    ],
)
def test_refuses(change, error, message):
    arguments = {
        "masks": torch.zeros(2, 3, 3),
        "labels": torch.zeros(2, dtype=torch.int64),
        "scores": torch.zeros(2),
    }
    with pytest.raises(error, match=message):
        matrix_nms(**(arguments | change))
