from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from instseg.ops import MultiscaleRoIAlign, assign_levels
from tests.contracts import reference

IMAGE = (512, 640)
STRIDES = (4, 8, 16, 32)


def box(width: float, height: float | None = None, x: float = 3.0, y: float = 5.0) -> list[float]:
    return [x, y, x + width, y + (width if height is None else height)]


def pyramid(batch: int, channels: int, strides=STRIDES, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, IMAGE[0] // s, IMAGE[1] // s, generator=generator)
        for s in strides
    ]


def random_boxes(n: int, seed: int) -> Tensor:
    """Sides from 4 to 512 px, evenly in the logarithm, so that every level has its share."""
    generator = torch.Generator().manual_seed(seed)
    side = 4 * 2 ** (7 * torch.rand(n, 2, generator=generator))
    corner = torch.rand(n, 2, generator=generator) * 200 - 10
    return torch.cat([corner, corner + side], dim=1)


@pytest.mark.parametrize(
    ("side", "level"),
    [
        *((side, 0) for side in (1, 28, 56, 111.9)),
        *((side, 1) for side in (112, 113, 223.9)),
        *((side, 2) for side in (224, 447.9)),
        *((side, 3) for side in (448, 895, 896, 5000)),
    ],
)
def test_levels_of_squares(side, level):
    """224 px belongs to stride 16 (FPN, eq. 1); powers of two fall on the coarser level."""
    boxes = torch.tensor([box(side, x=0.0, y=0.0)])
    assert assign_levels(boxes, STRIDES).tolist() == [level]


def test_the_area_decides_not_the_shape():
    boxes = torch.tensor([box(112, 448), box(448, 112), box(896, 14), box(112, 447)])
    assert assign_levels(boxes, STRIDES).tolist() == [2, 2, 1, 1]


def test_a_box_without_area_is_pooled_from_the_finest_level():
    boxes = torch.tensor([box(0, 0), box(0, 500)])
    assert assign_levels(boxes, STRIDES).tolist() == [0, 0]


def test_levels_count_from_the_first_stride_given():
    boxes = torch.tensor([box(s) for s in (56, 112, 224, 448)])
    assert assign_levels(boxes, (8, 16)).tolist() == [0, 0, 1, 1]
    assert assign_levels(boxes, (16,)).tolist() == [0, 0, 0, 0]


def test_canonical_size():
    boxes = torch.tensor([box(s) for s in (31, 32, 64, 128)])
    assert assign_levels(boxes, STRIDES, canonical_size=64).tolist() == [0, 1, 2, 3]


def test_levels_equal_torchvision():
    boxes = random_boxes(500, 1)
    ours = assign_levels(boxes, STRIDES)
    assert torch.equal(ours, LevelMapper(2, 5)([boxes]))
    assert ours.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equal_to_torchvision(sampling_ratio):
    """Torchvision's module has no half-pixel shift."""
    features = pyramid(2, 3)
    boxes = [random_boxes(20, 2), random_boxes(11, 3)]
    ours = MultiscaleRoIAlign(STRIDES, 5, sampling_ratio=sampling_ratio, aligned=False)
    theirs = MultiScaleRoIAlign([str(i) for i in range(4)], 5, sampling_ratio)
    named = OrderedDict((str(i), f) for i, f in enumerate(features))
    torch.testing.assert_close(ours(features, boxes), theirs(named, boxes, [IMAGE, IMAGE]))


@pytest.mark.parametrize("aligned", [True, False])
def test_equal_to_loops_from_the_definition(aligned):
    """Box by box, in the order given, from the image it belongs to."""
    features = pyramid(2, 1)
    boxes = [random_boxes(6, 4), torch.cat([random_boxes(4, 5), torch.tensor([box(470)])])]
    pooled = MultiscaleRoIAlign(STRIDES, 3, aligned=aligned)(features, boxes)
    assert pooled.shape == (11, 1, 3, 3)
    rois = [(b, *row) for b, image in enumerate(boxes) for row in image.double().tolist()]
    levels = set()
    for got, roi in zip(pooled, rois, strict=True):
        side = math.sqrt((roi[3] - roi[1]) * (roi[4] - roi[2]))
        level = min(max(math.floor(4 + math.log2(side / 224)), 2), 5) - 2
        levels.add(level)
        expected = reference.roi_align(
            features[level].double().numpy(),
            np.array([roi]),
            (3, 3),
            1 / STRIDES[level],
            2,
            aligned,
        )
        np.testing.assert_allclose(got.numpy(), expected[0], atol=1e-4)
    assert levels == {0, 1, 2, 3}


def test_order_is_that_of_the_boxes():
    """Levels of constant value tell where each box was pooled from."""
    features = [torch.full((1, 1, IMAGE[0] // s, IMAGE[1] // s), float(s)) for s in STRIDES]
    boxes = torch.tensor([box(s) for s in (448, 20, 224, 112, 30, 449)])
    pooled = MultiscaleRoIAlign(STRIDES, 2)(features, [boxes])
    torch.testing.assert_close(
        pooled[:, 0, 0, 0], torch.tensor([32.0, 4, 16, 8, 4, 32]), rtol=1e-6, atol=0
    )


def test_levels_beyond_the_strides_are_not_used():
    features, boxes = pyramid(1, 2, (*STRIDES, 64)), [random_boxes(10, 6)]
    pooler = MultiscaleRoIAlign(STRIDES, 4)
    expected = pooler(features[:4], boxes)
    features[4].fill_(float("nan"))
    assert torch.equal(pooler(features, boxes), expected)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_boxes(counts):
    features = pyramid(2, 3)
    boxes = [random_boxes(n, 7) for n in counts]
    pooled = MultiscaleRoIAlign(STRIDES, 4)(features, boxes)
    assert pooled.shape == (sum(counts), 3, 4, 4)
    assert pooled.isfinite().all()


def test_gradients_reach_the_pooled_level_alone():
    features = [f.requires_grad_() for f in pyramid(2, 1)]
    boxes = [torch.tensor([box(224)]), torch.tensor([box(20)])]
    MultiscaleRoIAlign(STRIDES, 4)(features, boxes).sum().backward()
    reached = [[bool(image.any()) for image in f.grad] for f in features]
    assert reached == [[False, True], [False, False], [True, False], [False, False]]


@pytest.mark.parametrize("strides", [(4, 16), (8, 4), (4, 4)])
def test_strides_without_order_are_refused(strides):
    with pytest.raises(ValueError, match="consecutive powers of two"):
        MultiscaleRoIAlign(strides, 7)


@pytest.mark.parametrize("strides", [(3,), (6, 12, 24), (14,)])
def test_strides_that_are_no_powers_of_two_are_refused(strides):
    with pytest.raises(ValueError, match="consecutive powers of two"):
        MultiscaleRoIAlign(strides, 7)
