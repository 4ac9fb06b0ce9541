from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.heads.prototypes import ProtoNet
from instseg.ops import instance_rles, rle
from instseg.structures import BitMasks, Instances, RoIMasks, SparseMasks
from tests.contracts.reference import roi_align

NONE = torch.zeros(0, dtype=torch.int64)


def masks_of(prototypes: int = 2, size: int = 4, **options) -> PrototypeMasks:
    return PrototypeMasks(3, num_prototypes=prototypes, channels=4, mask_size=size, **options)


def instances(size: tuple[int, int], boxes: list[list[float]], masks=None) -> Instances:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances(size, torch.tensor(boxes).reshape(-1, 4).float(), labels, masks=masks)


def disc(size: tuple[int, int], y: float, x: float, radius: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < radius**2


@torch.no_grad()
def test_prototypes_are_twice_as_fine_and_not_negative():
    net = ProtoNet(3, 5, channels=4)
    prototypes = net(torch.randn(2, 3, 6, 7))
    assert prototypes.shape == (2, 5, 12, 14)
    assert prototypes.min() == 0
    assert prototypes.max() > 0
    assert masks_of(5)(torch.randn(2, 3, 1, 1)).shape == (2, 5, 2, 2)


def cross_entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def loss_loops(
    prototypes: Tensor,
    stride: int,
    coefficients: Tensor,
    image: list[int],
    objects: list[int],
    targets: list[Instances],
    size: int,
) -> float:
    """For each positive, masks as section 3.1 has them, on RoIAlign's grid over the object's box.

    Pixel masks are averaged over the cells of that grid (Mask R-CNN, section 3).
    """
    total = 0.0
    for c, b, o in zip(coefficients.double().tolist(), image, objects, strict=True):
        roi = np.array([[0, *targets[b].boxes[o].double().tolist()]])
        logits = np.zeros((1, 1, *prototypes.shape[2:]))
        for k, weight in enumerate(c):
            logits[0, 0] += math.tanh(weight) * prototypes[b, k].double().numpy()
        grid = roi_align(logits, roi, (size, size), 2 / stride, -1, True)[0, 0]
        pixels = targets[b].masks.tensor[o].double().numpy()[None, None]
        wanted = roi_align(pixels, roi, (size, size), 1.0, -1, True)[0, 0]
        cells = [cross_entropy(x, t) for x, t in zip(grid.flat, wanted.flat, strict=True)]
        total += sum(cells) / len(cells)
    return total / len(image)


class TestLoss:
    def test_hand_worked(self):
        """Prototype 0 is 2 left and 0 right, the object the left half of its box.

        Coefficient c gives logits 2 tanh(c) and 0, on the same two columns as the mask.
        """
        prototypes = torch.zeros(1, 1, 4, 4)
        prototypes[..., :2] = 2.0
        pixels = torch.zeros(1, 8, 8, dtype=torch.bool)
        pixels[..., :4] = True
        target = instances((8, 8), [[0, 0, 8, 8]], BitMasks(pixels))
        zero = torch.tensor([0])
        loss = masks_of(1).loss(prototypes, 4, torch.tensor([[0.5]]), zero, zero, [target])
        expected = (math.log(1 + math.exp(-2 * math.tanh(0.5))) + math.log(2)) / 2
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("stride", [4, 8])
    def test_equal_to_the_definition(self, stride):
        """Two images, objects with several positives, one with none, in mixed order."""
        sizes = [(32, 40), (24, 48)]
        boxes = [
            [[2.5, 3, 20, 30], [10, 8, 38.25, 25]],
            [[0, 0, 48, 24], [30, 4, 44, 19.5], [5, 5, 9, 9]],
        ]
        targets = [
            instances(s, b, BitMasks(torch.rand(len(b), *s) > 0.5))
            for s, b in zip(sizes, boxes, strict=True)
        ]
        prototypes = torch.rand(2, 3, 64 // stride, 96 // stride) * 3
        coefficients = torch.randn(6, 3)
        image, objects = [1, 0, 1, 1, 0, 1], [2, 1, 0, 2, 1, 2]
        masks = masks_of(3, 5)
        loss = masks.loss(
            prototypes, stride, coefficients, torch.tensor(image), torch.tensor(objects), targets
        )
        expected = loss_loops(prototypes, stride, coefficients, image, objects, targets, 5)
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_sparse_masks_give_what_their_pixels_give(self):
        pixels = disc((32, 40), 15, 18, 11)
        code = rle.encode(pixels.numpy())
        sparse = SparseMasks([code], (32, 40), (32, 40))
        values = []
        for form in (sparse, BitMasks(pixels[None])):
            target = instances((32, 40), [[6, 3, 30, 27]], form)
            torch.manual_seed(0)
            prototypes, coefficients = torch.rand(1, 2, 8, 10), torch.randn(1, 2)
            zero = torch.tensor([0])
            values.append(masks_of().loss(prototypes, 8, coefficients, zero, zero, [target]))
        torch.testing.assert_close(*values)

    def test_the_limit_takes_objects_in_turn(self):
        """Four positives of object 0, two of 1, one of 2: the first of each, and one more of 0."""
        pixels = torch.rand(3, 32, 32) > 0.5
        boxes = [[0.0, 0, 16, 16], [8, 8, 30, 30], [4, 2, 20, 31]]
        target = instances((32, 32), boxes, BitMasks(pixels))
        prototypes, coefficients = torch.rand(1, 2, 8, 8), torch.randn(7, 2)
        objects = torch.tensor([0, 0, 1, 0, 2, 1, 0])
        image = torch.zeros(7, dtype=torch.int64)
        limited = masks_of(max_positives=4)
        got = limited.loss(prototypes, 8, coefficients, image, objects, [target])
        taken = torch.tensor([0, 2, 4, 1])
        wanted = masks_of().loss(
            prototypes, 8, coefficients[taken], image[taken], objects[taken], [target]
        )
        torch.testing.assert_close(got, wanted)
        every = masks_of().loss(prototypes, 8, coefficients, image, objects, [target])
        assert (got - every).abs() > 1e-4

    def test_the_limit_is_of_each_image(self):
        target = instances((32, 32), [[0, 0, 16, 16]], BitMasks(torch.rand(1, 32, 32) > 0.5))
        prototypes, coefficients = torch.rand(2, 2, 8, 8), torch.randn(6, 2, requires_grad=True)
        image, objects = torch.tensor([0, 0, 0, 0, 1, 1]), torch.zeros(6, dtype=torch.int64)
        masks = masks_of(max_positives=2)
        masks.loss(prototypes, 8, coefficients, image, objects, [target, target]).backward()
        taken = [True, True, False, False, True, True]
        assert coefficients.grad.any(dim=1).tolist() == taken

    @pytest.mark.parametrize("targets", ["none", "unmatched"])
    def test_no_positives_is_zero_with_gradients(self, targets):
        size = (32, 32)
        target = (
            Instances.empty(size)
            if targets == "none"
            else instances(size, [[2, 2, 9, 9]], BitMasks(torch.ones(1, *size).bool()))
        )
        masks = masks_of()
        feature, raw = torch.randn(2, 3, 4, 4), torch.randn(5, 2, requires_grad=True)
        loss = masks.loss(masks(feature), 8, raw[NONE], NONE, NONE, [target, target])
        loss.backward()
        assert loss == 0
        assert loss.dtype == torch.float32
        for parameter in (*masks.parameters(), raw):
            assert parameter.grad is not None
            assert not parameter.grad.any()

    def test_a_box_without_area_is_finite(self):
        target = instances((32, 32), [[5, 5, 5, 9]], BitMasks(torch.ones(1, 32, 32).bool()))
        prototypes = torch.rand(1, 2, 8, 8, requires_grad=True)
        zero = torch.tensor([0])
        loss = masks_of().loss(prototypes, 8, torch.randn(1, 2), zero, zero, [target])
        loss.backward()
        assert loss.isfinite()
        assert prototypes.grad.isfinite().all()

    @pytest.mark.parametrize("masks", [None, RoIMasks(torch.rand(1, 4, 4))])
    def test_targets_without_masks(self, masks):
        target = instances((32, 32), [[2, 2, 9, 9]], masks)
        with pytest.raises(ValueError, match="need targets with SparseMasks or BitMasks"):
            masks_of().loss(torch.rand(1, 2, 8, 8), 8, torch.zeros(0, 2), NONE, NONE, [target])


class TestPredict:
    def test_hand_worked(self):
        """Prototype 0 is 4 left, prototype 1 is 4 at the bottom; two boxes see a half of each."""
        prototypes = torch.zeros(1, 2, 8, 8)
        prototypes[0, 0, :, :4] = 4.0
        prototypes[0, 1, 4:] = 4.0
        boxes = [[0, 0, 32, 32], [0, 0, 16, 16]]
        raw = torch.tensor([[1.0, 0.0], [1.0, -0.5]])
        (found,) = masks_of(size=2).predict(prototypes, 8, [raw], [instances((32, 32), boxes)])
        a = 1 / (1 + math.exp(-4 * math.tanh(1)))
        assert isinstance(found.masks, RoIMasks)
        assert found.masks.aligned
        assert found.masks.probs[0].flatten().tolist() == pytest.approx([a, 0.5, a, 0.5])
        # The bottom edge of box 2 is that of prototype 1: nothing of it is inside.
        assert found.masks.probs[1].flatten().tolist() == pytest.approx([a, a, a, a])
        both = instances((32, 32), [[0, 16, 16, 32]])
        (found,) = masks_of(size=2).predict(prototypes, 8, [raw[1:]], [both])
        b = 1 / (1 + math.exp(-4 * (math.tanh(1) - math.tanh(0.5))))
        assert found.masks.probs[0].flatten().tolist() == pytest.approx([b] * 4)

    def test_images_keep_to_themselves(self):
        prototypes, raw = torch.rand(2, 2, 8, 8), torch.randn(3, 2)
        one = instances((32, 32), [[1, 2, 20, 30], [3, 3, 9, 9]])
        other = instances((32, 24), [[5, 5, 22, 28]])
        masks = masks_of()
        both = masks.predict(prototypes, 8, list(raw.split([2, 1])), [one, other])
        (alone,) = masks.predict(prototypes[1:], 8, [raw[2:]], [other])
        assert torch.equal(both[1].masks.probs, alone.masks.probs)
        assert [f.masks.probs.shape for f in both] == [(2, 4, 4), (1, 4, 4)]
        assert both[0].boxes is one.boxes

    def test_no_detections(self):
        found = masks_of().predict(
            torch.rand(1, 2, 8, 8), 8, [torch.zeros(0, 2)], [Instances.empty((32, 32))]
        )
        assert found[0].masks.probs.shape == (0, 4, 4)


def test_overfits_masks():
    """Two discs in each other's boxes: prototypes and coefficients learn to tell them apart."""
    size = (64, 64)
    shapes = torch.stack([disc(size, 26, 24, 16), disc(size, 40, 44, 14)])
    boxes = [[8, 10, 40, 42], [30, 26, 58, 54]]
    target = instances(size, boxes, BitMasks(shapes))
    masks = PrototypeMasks(8, num_prototypes=8, channels=16, mask_size=28)
    feature = torch.randn(1, 8, 16, 16)
    raw = torch.nn.Parameter(torch.randn(2, 8) * 0.1)
    optimizer = torch.optim.Adam([*masks.parameters(), raw], lr=0.01)
    image, objects = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    for _ in range(80):
        loss = masks.loss(masks(feature), 4, raw, image, objects, [target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = masks.predict(masks(feature), 4, [raw], [target])
    pasted = torch.from_numpy(np.stack([rle.decode(code) for code in instance_rles(found)])).bool()
    overlap = (pasted & shapes).sum((1, 2)) / (pasted | shapes).sum((1, 2))
    assert overlap.min() > 0.9
