"""Coordinate maps, instances, batches."""

from __future__ import annotations

import pytest
import torch

from instseg.structures import (
    AxisTransform,
    BitMasks,
    ImageBatch,
    Instances,
    RoIMasks,
    SparseMasks,
)

BOXES = torch.tensor([[1.0, 2, 5, 9], [0, 0, 10, 4]])
LABELS = torch.tensor([3, 1])


def test_maps_compose_and_invert():
    steps = [
        AxisTransform.resize((10, 20), (30, 50)),
        AxisTransform.hflip(50),
        AxisTransform.crop(7, 3),
    ]
    whole, boxes = AxisTransform(), BOXES
    for step in steps:
        whole = whole.then(step)
        boxes = step.apply_boxes(boxes)
    assert torch.allclose(whole.apply_boxes(BOXES), boxes, atol=1e-5)
    assert torch.allclose(whole.inverse().apply_boxes(boxes), BOXES, atol=1e-5)
    # x 1..5 of 20 -> 2.5..12.5 of 50 -> mirrored 37.5..47.5 -> minus 7.
    assert boxes[0].tolist() == pytest.approx([30.5, 3.0, 40.5, 24.0])
    with pytest.raises(ValueError, match="no inverse"):
        AxisTransform(scale_x=0)


def test_instances_select():
    instances = Instances(
        (10, 12),
        BOXES,
        LABELS,
        scores=torch.tensor([0.5, 0.9]),
        masks=BitMasks(torch.eye(2, 10)[:, :, None].expand(2, 10, 12) > 0),
        is_crowd=torch.tensor([False, True]),
    )
    for index in (torch.tensor([False, True]), torch.tensor([1]), [1], slice(1, 2)):
        chosen = instances[index]
        assert len(chosen) == 1
        assert chosen.labels.tolist() == [1]
        assert chosen.scores.tolist() == pytest.approx([0.9])
        assert chosen.crowd.tolist() == [True]
        assert torch.equal(chosen.masks.tensor, instances.masks.tensor[1:])
    assert len(instances[[]]) == 0
    assert Instances((4, 4), BOXES, LABELS).crowd.tolist() == [False, False]
    assert len(Instances.empty((4, 5), with_masks=True).masks) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"boxes must be floating \[N, 4\]"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, "boxes must be floating"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be int64 \[2\]"),
        ({"labels": torch.zeros(2)}, "got torch.float32"),
        ({"scores": torch.zeros(3)}, r"scores must be \[2\], got \[3\]"),
        ({"masks": RoIMasks(torch.rand(1, 3, 3))}, "2 boxes but 1 masks"),
        ({"is_crowd": torch.zeros(2)}, r"is_crowd must be bool \[2\]"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Instances(**({"image_size": (10, 12), "boxes": BOXES, "labels": LABELS} | fields))


def test_masks_refuse_other_tensors():
    with pytest.raises(ValueError, match="BitMasks needs a bool or uint8"):
        BitMasks(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="RoIMasks needs a floating"):
        RoIMasks(torch.zeros(2, 3, dtype=torch.float32))


def test_instances_follow_the_image():
    moved = Instances((10, 12), BOXES, LABELS).transformed(AxisTransform.crop(2, 1), (5, 6))
    assert moved.image_size == (5, 6)
    assert moved.boxes.tolist() == [[0, 1, 3, 5], [0, 0, 6, 3]]  # clipped to 6 x 5
    with pytest.raises(TypeError, match="use SparseMasks"):
        Instances((2, 2), BOXES, LABELS, masks=BitMasks(torch.zeros(2, 2, 2) > 0)).resized((4, 4))


def test_mirroring_turns_predicted_masks():
    probs = torch.rand(2, 4, 4)
    found = Instances((10, 12), BOXES, LABELS, masks=RoIMasks(probs))
    mirrored = found.transformed(AxisTransform.hflip(12), (10, 12))
    assert torch.equal(mirrored.masks.probs, probs.flip(2))
    assert torch.equal(found.resized((20, 24)).masks.probs, probs)


def test_sparse_masks_only_compose_the_map():
    masks = SparseMasks([[], []], (10, 12), (10, 12))
    moved = masks.transformed(AxisTransform.resize((10, 12), (20, 24)), (20, 24))
    assert moved.segmentations is masks.segmentations
    assert moved.size == (20, 24)
    assert moved.source_size == (10, 12)
    assert moved.transform == AxisTransform(2.0, 0.0, 2.0, 0.0)


def test_batches_pad_at_the_right_and_bottom():
    images = [torch.ones(3, 5, 7), torch.full((3, 9, 4), 2.0)]
    batch = ImageBatch.from_images(images, size_divisor=8)
    assert batch.tensor.shape == (2, 3, 16, 8)
    assert batch.sizes == [(5, 7), (9, 4)]
    assert torch.equal(batch.tensor[0, :, :5, :7], images[0])
    assert batch.tensor[0].sum() == images[0].sum()
    assert torch.equal(batch.tensor[1, :, :9, :4], images[1])
