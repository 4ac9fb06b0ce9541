"""What every backend of every op must do. A new backend is one more entry of `BACKENDS`."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg import ops
from tests.contracts import reference

BACKENDS = {"torchvision": contextlib.nullcontext}


@pytest.fixture(params=list(BACKENDS), autouse=True)
def backend(request):
    with BACKENDS[request.param]():
        yield request.param


ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 11.2],
        [1, -5.0, -3.0, 4.0, 6.0],
        [0, 10.0, 10.0, 40.0, 30.0],
        [1, 5.0, 5.0, 5.0, 5.0],
        [0, 3.2, 3.2, 3.9, 3.6],
        [1, 60.0, 60.0, 90.0, 90.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_equals_its_definition(aligned, sampling_ratio, scale):
    feature = torch.randn(2, 3, 12, 15, dtype=torch.float64)
    got = ops.roi_align(feature, ROIS, (3, 2), scale, sampling_ratio, aligned)
    wanted = reference.roi_align(
        feature.numpy(), ROIS.numpy(), (3, 2), scale, sampling_ratio, aligned
    )
    assert np.allclose(got.numpy(), wanted, atol=1e-12)


def test_roi_align_gradient():
    feature = torch.randn(1, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.6, 1.1, 4.3, 5.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, rois, 3, 1.0, 2), feature)


def test_roi_align_without_boxes_and_with_lists():
    feature = torch.randn(2, 3, 8, 8)
    assert ops.roi_align(feature, torch.zeros(0, 5), 4).shape == (0, 3, 4, 4)
    boxes = [torch.tensor([[1.0, 1, 5, 6]]), torch.tensor([[0.0, 2, 7, 7], [3, 3, 4, 4]])]
    rois = ops.boxes_to_rois(boxes)
    assert rois[:, 0].tolist() == [0, 1, 1]
    assert torch.equal(ops.roi_align(feature, boxes, 4), ops.roi_align(feature, rois, 4))


@pytest.mark.parametrize(
    ("feature", "boxes", "message"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(1, 5), r"input must be \[B, C, H, W\], got \[3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 4), r"boxes must be \[K, 5\].*got \[1, 4\]"),
        (torch.zeros(2, 3, 8, 8), [torch.zeros(1, 4)], "boxes must be 2 tensors"),
    ],
)
def test_roi_align_refuses_wrong_shapes(feature, boxes, message):
    with pytest.raises(ValueError, match=message):
        ops.roi_align(feature, boxes, 4)


def random_boxes(n: int, seed: int, size: float = 60.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size], dim=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_keeps_what_the_loop_keeps(n, seed, threshold):
    boxes = random_boxes(n, seed)
    # Few distinct scores: ties must fall as in a stable sort.
    scores = torch.randint(0, 8, (n,), generator=torch.Generator().manual_seed(seed)) / 8
    wanted = reference.nms(boxes.double().numpy(), scores.numpy(), threshold)
    assert ops.nms(boxes, scores, threshold).tolist() == wanted


def test_nms_at_the_threshold_keeps_both():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU exactly 0.5
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.499).tolist() == [0]


def test_batched_nms_is_nms_in_each_group():
    boxes, groups = random_boxes(200, 4), torch.arange(200) % 3
    scores = torch.rand(200, generator=torch.Generator().manual_seed(4))
    kept = ops.batched_nms(boxes, scores, groups, 0.4)
    wanted = [
        i
        for g in range(3)
        for i in (groups == g).nonzero()[:, 0][
            ops.nms(boxes[groups == g], scores[groups == g], 0.4)
        ]
    ]
    assert sorted(kept.tolist()) == sorted(int(i) for i in wanted)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


def test_nms_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\], got \[2, 5\]"):
        ops.nms(torch.zeros(2, 5), torch.zeros(2), 0.5)
    with pytest.raises(ValueError, match=r"scores must be \[2\], got \[3\]"):
        ops.nms(torch.zeros(2, 4), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"groups must be \[2\], got \[1\]"):
        ops.batched_nms(torch.zeros(2, 4), torch.zeros(2), torch.zeros(1), 0.5)


def test_overlaps():
    a, b = random_boxes(30, 1), random_boxes(20, 2)
    wanted = [[reference.iou(x, y) for y in b.double().numpy()] for x in a.double().numpy()]
    assert torch.allclose(ops.box_iou(a, b), torch.tensor(wanted, dtype=torch.float32), atol=1e-6)
    assert torch.allclose(ops.box_iou(a, b), torchvision.ops.box_iou(a, b))
    empty = torch.tensor([[3.0, 3, 3, 3]])
    assert ops.box_iou(empty, empty).item() == 0
    inside = torch.tensor([[1.0, 1, 3, 3], [0, 0, 8, 8]])
    region = torch.tensor([[0.0, 0, 4, 4]])
    assert ops.box_ioa(inside, region)[:, 0].tolist() == [1.0, 0.25]


def test_clip_and_size():
    boxes = torch.tensor([[-3.0, 2, 50, 8], [1, 1, 1.5, 9]])
    assert ops.clip_boxes(boxes, (6, 40)).tolist() == [[0, 2, 40, 6], [1, 1, 1.5, 6]]
    assert ops.large_boxes(boxes, 1.0).tolist() == [True, False]


BOXES = torch.tensor(
    [[2.3, 1.7, 12.9, 9.2], [-4.0, -2.5, 6.0, 5.0], [10.0, 3.0, 30.0, 40.0], [5.2, 5.1, 5.9, 5.6]]
)


def test_paste_equals_its_definition():
    masks = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0))
    got = ops.paste_masks(masks, BOXES, (14, 20))
    for page, mask, box in zip(got, masks, BOXES, strict=True):
        wanted = reference.paste(mask.double().numpy(), box.double().numpy(), (14, 20))
        assert np.allclose(page.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_masks_to_rle_is_paste_threshold_encode(aligned):
    masks = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0))
    codes = ops.masks_to_rle(masks, BOXES, (14, 20), threshold=0.4, aligned=aligned)
    pasted = ops.paste_masks(masks, BOXES, (14, 20), aligned=aligned) > 0.4
    for code, page in zip(codes, pasted, strict=True):
        assert code["size"] == [14, 20]
        assert np.array_equal(ops.rle.decode(code), page.numpy().astype(np.uint8))


def test_boxes_outside_the_image_paste_nothing():
    masks = torch.ones(3, 4, 4)
    boxes = torch.tensor([[30.0, 30, 40, 40], [-9, -9, -1, -1], [3, 3, 3, 3]])
    assert ops.paste_masks(masks, boxes, (10, 10)).sum() == 0
