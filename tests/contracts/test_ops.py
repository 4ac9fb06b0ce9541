"""What boxes and pasted masks must do with every backend; larger ops have files of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.ops

from instseg import ops
from tests.contracts import reference

pytestmark = pytest.mark.usefixtures("backend")


def random_boxes(n: int, seed: int, size: float = 60.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size], dim=1)


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
