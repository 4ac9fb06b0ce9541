from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from instseg.models.box_coder import BoxCoder

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


def random_boxes(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 300 - 20
    # Sides of 10 to 210: no ratio of two reaches the cap of 62.5.
    return torch.cat([corner, corner + 10 + torch.rand(n, 2, generator=generator) * 200], dim=1)


def test_hand_worked():
    """Reference centre (10, 20), 20 x 40; box centre (15, 10), 40 x 10."""
    references = torch.tensor([[0.0, 0, 20, 40]])
    boxes = torch.tensor([[-5.0, 5, 35, 15]])
    offsets = BoxCoder().encode(boxes, references)
    assert offsets[0].tolist() == pytest.approx([0.25, -0.25, math.log(2), math.log(0.25)])
    weighted = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode(boxes, references)
    expected = [2.5, -2.5, 5 * math.log(2), 5 * math.log(0.25)]
    assert weighted[0].tolist() == pytest.approx(expected)
    assert BoxCoder().decode(offsets, references)[0].tolist() == pytest.approx([-5, 5, 35, 15])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encode_is_the_definition(weights):
    boxes, references = random_boxes(20, 1), random_boxes(20, 2)
    got = BoxCoder(weights).encode(boxes, references)
    for row, (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(
        got.tolist(), boxes.double().tolist(), references.double().tolist(), strict=True
    ):
        wx, wy, ww, wh = weights
        expected = [
            wx * ((x1 + x2) / 2 - (a1 + a2) / 2) / (a2 - a1),
            wy * ((y1 + y2) / 2 - (b1 + b2) / 2) / (b2 - b1),
            ww * math.log((x2 - x1) / (a2 - a1)),
            wh * math.log((y2 - y1) / (b2 - b1)),
        ]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_undoes_encode(weights):
    boxes, references = random_boxes(200, 3), random_boxes(200, 4)
    coder = BoxCoder(weights)
    back = coder.decode(coder.encode(boxes, references), references)
    torch.testing.assert_close(back, boxes, rtol=0, atol=2e-3)
    back = coder.decode(coder.encode(boxes.double(), references.double()), references.double())
    torch.testing.assert_close(back, boxes.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equal_to_torchvision(weights):
    boxes, references = random_boxes(50, 5), random_boxes(50, 6)
    ours, theirs = BoxCoder(weights), TorchvisionCoder(weights)
    torch.testing.assert_close(
        ours.encode(boxes, references),
        theirs.encode_single(boxes, references),
        rtol=1e-5,
        atol=1e-5,
    )
    # Wide enough that some sizes reach the cap.
    offsets = torch.randn(50, 4, generator=torch.Generator().manual_seed(7)) * 6
    torch.testing.assert_close(
        ours.decode(offsets, references), theirs.decode_single(offsets, references)
    )


def test_no_offset_is_the_reference():
    references = random_boxes(10, 8)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    assert torch.equal(coder.encode(references, references), torch.zeros(10, 4))
    torch.testing.assert_close(coder.decode(torch.zeros(10, 4), references), references)


def test_sizes_are_capped():
    references = torch.tensor([[0.0, 0, 16, 32]])
    offsets = torch.tensor([[0.0, 0, 1e4, float("inf")]], requires_grad=True)
    boxes = BoxCoder().decode(offsets, references)
    # 1000/16 times 16 x 32 is 1000 x 2000, around (8, 16).
    assert boxes[0].tolist() == pytest.approx([-492, -984, 508, 1016], rel=1e-5)
    boxes.sum().backward()
    assert offsets.grad is not None
    assert offsets.grad.isfinite().all()


def test_the_cap_is_on_the_unweighted_size():
    """With weight 5, an offset of 5 log(1000/16) is the largest that counts."""
    references = torch.tensor([[0.0, 0, 16, 16]])
    limit = 5 * math.log(1000 / 16)
    below, above = (
        BoxCoder((10.0, 10.0, 5.0, 5.0)).decode(torch.tensor([[0.0, 0, v, v]]), references)
        for v in (limit - 0.5, limit + 0.5)
    )
    assert (above[0, 2] - above[0, 0]).item() == pytest.approx(1000, rel=1e-5)
    assert (below[0, 2] - below[0, 0]).item() == pytest.approx(1000 * math.exp(-0.1), rel=1e-5)


def test_references_broadcast_over_classes():
    references, generator = random_boxes(6, 9), torch.Generator().manual_seed(10)
    offsets = torch.randn(6, 3, 4, generator=generator) * 0.5
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes = coder.decode(offsets, references[:, None])
    assert boxes.shape == (6, 3, 4)
    for c in range(3):
        assert torch.equal(boxes[:, c], coder.decode(offsets[:, c], references))


def test_empty():
    coder = BoxCoder()
    assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert coder.decode(torch.zeros(0, 3, 4), torch.zeros(0, 1, 4)).shape == (0, 3, 4)
