"""Soft-NMS against its loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instseg.ops.nms import nms
from instseg.ops.soft_nms import soft_nms


def scene(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * 25 + 1], dim=1)
    # Few distinct scores: ties must fall to the box that comes first.
    return boxes, torch.randint(0, 12, (n,), generator=generator) / 12


def iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0) * max(high, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def loop(boxes, scores, sigma, score_threshold, method, iou_threshold):
    """Algorithm of figure 2 of the paper, in Python's float64."""
    left = dict(enumerate(scores.tolist()))
    boxes = boxes.tolist()
    kept, lowered = [], []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score > score_threshold:
            kept.append(best)
            lowered.append(score)
        for i in left:
            overlap = iou(boxes[best], boxes[i])
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                left[i] *= 1 - overlap
    return kept, lowered


@given(
    st.integers(0, 25),
    st.integers(0, 10**6),
    st.sampled_from(["gaussian", "linear"]),
    st.sampled_from([0.1, 0.5, 3.0]),
    st.sampled_from([0.0, 0.001, 0.3]),
)
def test_equals_the_loop(n, seed, method, sigma, score_threshold):
    boxes, scores = scene(n, seed)
    boxes, scores = boxes.double(), scores.double()
    kept, lowered = soft_nms(boxes, scores, sigma, score_threshold, method, 0.3)
    wanted, wanted_scores = loop(boxes, scores, sigma, score_threshold, method, 0.3)
    assert kept.tolist() == wanted
    assert lowered.tolist() == pytest.approx(wanted_scores, rel=1e-12)


def test_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12]])  # IoU 0.5
    scores = torch.tensor([0.9, 0.8, 0.5])
    kept, lowered = soft_nms(boxes, scores, method="linear", iou_threshold=0.5)
    assert kept.tolist() == [0, 2, 1]
    assert lowered.tolist() == pytest.approx([0.9, 0.5, 0.4])
    kept, lowered = soft_nms(boxes, scores, method="linear", iou_threshold=0.6)
    assert kept.tolist() == [0, 1, 2]
    assert lowered.tolist() == pytest.approx([0.9, 0.8, 0.5])
    kept, lowered = soft_nms(boxes, scores, sigma=0.25)
    assert kept.tolist() == [0, 2, 1]
    assert lowered.tolist() == pytest.approx([0.9, 0.5, 0.8 * math.exp(-1)])


def test_copies_of_a_box_are_dropped_and_a_narrow_gaussian_is_nms():
    boxes, scores = scene(40, 3)
    kept, _ = soft_nms(boxes, scores, sigma=1e-6)
    alive = kept[scores[kept] > 0.001]
    assert alive.tolist() == [i for i in nms(boxes, scores, 0.005).tolist() if scores[i] > 0.001]
    copies = boxes[:1].expand(5, 4)
    kept, _ = soft_nms(copies, torch.full((5,), 0.5), method="linear")
    assert kept.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decays_in_float32(dtype):
    boxes, scores = scene(20, 5)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    kept, lowered = soft_nms(boxes, scores)
    wanted, wanted_scores = soft_nms(boxes.float(), scores.float())
    assert lowered.dtype == dtype
    assert torch.equal(kept, wanted)
    assert torch.equal(lowered, wanted_scores.to(dtype))


def test_arguments_stay_and_have_no_gradient():
    boxes, scores = scene(10, 1)
    before = scores.clone()
    lowered = soft_nms(boxes.requires_grad_(), scores.requires_grad_())[1]
    assert torch.equal(scores, before)
    assert not lowered.requires_grad


def test_opcheck():
    boxes, scores = scene(8, 2)
    torch.library.opcheck(torch.ops.instseg.soft_nms.default, (boxes, scores, 0.5, "linear", 0.3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, ValueError, r"boxes must be \[N, 4\], got \[2, 5\]"),
        ({"scores": torch.zeros(3)}, ValueError, r"scores must be \[2\], got \[3\]"),
        ({"scores": torch.zeros(2).long()}, TypeError, "scores must be a floating tensor"),
        ({"sigma": 0.0}, ValueError, "sigma must be positive and finite, got 0.0"),
        ({"score_threshold": -1.0}, ValueError, r"score_threshold must be in \[0, 1\], got -1.0"),
        ({"iou_threshold": 1.5}, ValueError, r"iou_threshold must be in \[0, 1\], got 1.5"),
        ({"method": "hard"}, ValueError, "method must be one of gaussian, linear, got 'hard'"),
        ({"scores": torch.tensor([0.1, math.nan])}, ValueError, "scores must be finite, row 1"),
        ({"boxes": torch.full((2, 4), math.inf)}, ValueError, "boxes must be finite, row 0"),
    ],
)
def test_refuses(change, error, message):
    arguments = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2)} | change
    with pytest.raises(error, match=message):
        soft_nms(**arguments)
