"""SimOTA against loops in float64 written from the paper, and against cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from instseg.models import simota
from instseg.models.matcher import IGNORED, NEGATIVE, POSITIVE
from instseg.models.simota import Cells, SimOTA
from instseg.structures import Instances
from tests.contracts.reference import iou


def grid(side: int, strides: tuple[int, ...]) -> Cells:
    """The cells of a square image."""
    centers = [
        [(x + 0.5) * s, (y + 0.5) * s]
        for s in strides
        for y in range(side // s)
        for x in range(side // s)
    ]
    sides = [float(s) for s in strides for _ in range((side // s) ** 2)]
    return Cells(torch.tensor(centers), torch.tensor(sides))


def targets(
    boxes: list[list[float]], labels: list[int], *, crowd: list[bool] | None = None
) -> Instances:
    return Instances(
        (64, 64),
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        is_crowd=None if crowd is None else torch.tensor(crowd),
    )


def cross_entropy(p: float, wanted: float) -> float:
    return -(wanted * max(math.log(p), -100) + (1 - wanted) * max(math.log1p(-p), -100))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(
    cells: Cells, boxes: Tensor, objectness: Tensor, classes: Tensor, target: Instances
) -> dict[int, int]:
    """From cell to object, by the steps of section 2.1 and the authors' constants."""
    numbers = range(len(target))
    cost: dict[tuple[int, int], float] = {}
    ious: dict[tuple[int, int], float] = {}
    regions = {}
    for g in numbers:
        x1, y1, x2, y2 = target.boxes[g].tolist()
        for a, (x, y) in enumerate(cells.centers.tolist()):
            radius = 2.5 * cells.strides[a].item()
            in_box = x1 < x < x2 and y1 < y < y2
            in_center = abs(x - (x1 + x2) / 2) < radius and abs(y - (y1 + y2) / 2) < radius
            regions[g, a] = (in_box, in_center)
    candidates = [a for a in range(len(boxes)) if any(any(regions[g, a]) for g in numbers)]
    for g in numbers:
        for a in candidates:
            ious[g, a] = iou(target.boxes[g].tolist(), boxes[a].tolist())
            classification = sum(
                cross_entropy(
                    math.sqrt(sigmoid(logit) * sigmoid(objectness[a].item())),
                    float(c == target.labels[g].item()),
                )
                for c, logit in enumerate(classes[a].tolist())
            )
            outside = 0.0 if all(regions[g, a]) else 1e5
            cost[g, a] = classification - 3 * math.log(ious[g, a] + 1e-8) + outside
    claims: dict[int, list[int]] = {}
    for g in numbers:
        k = max(int(sum(sorted((ious[g, a] for a in candidates), reverse=True)[:10])), 1)
        for a in sorted(candidates, key=lambda a: cost[g, a])[:k]:
            claims.setdefault(a, []).append(g)
    return {
        a: owners[0] if len(owners) == 1 else min(numbers, key=lambda g: cost[g, a])
        for a, owners in claims.items()
    }


def scene(seed: int, objects: int, *, num_classes: int = 3) -> tuple[Cells, Tensor, ...]:
    """Crowded boxes of all sizes, and predictions near enough to overlap them."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid(64, (8, 16, 32))
    count = len(cells.strides)
    corner = torch.rand(objects, 2, generator=generator) * 50
    size = 2 + torch.rand(objects, 2, generator=generator) ** 2 * 40
    gt = torch.cat([corner, corner + size], dim=1)
    labels = torch.randint(0, num_classes, (objects,), generator=generator)
    near = gt[torch.randint(0, objects, (count,), generator=generator)].double()
    center = (cells.centers.double() + (near[:, :2] + near[:, 2:]) / 2) / 2
    half = (near[:, 2:] - near[:, :2]) * (0.3 + torch.rand(count, 2, generator=generator)) / 2
    boxes = torch.cat([center - half, center + half], dim=1)
    objectness = torch.randn(count, generator=generator).double() * 2
    classes = torch.randn(count, num_classes, generator=generator).double() * 2
    return cells, boxes, objectness, classes, Instances((64, 64), gt, labels)


def assigned(result: tuple[Tensor, Tensor]) -> dict[int, int]:
    kind, matched = result
    assert (matched[kind != POSITIVE] == 0).all()
    return {a: matched[a].item() for a in (kind == POSITIVE).nonzero()[:, 0].tolist()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objects", [1, 4, 12])
def test_loops_written_from_the_paper(seed, objects):
    case = scene(seed, objects)
    assert assigned(SimOTA()(*case)) == reference(*case)


@pytest.mark.parametrize("chunk", [1, 200, 1000])
def test_chunks_change_nothing(monkeypatch, chunk):
    case = scene(1, 12)
    whole = SimOTA()(*case)
    monkeypatch.setattr(simota, "_CHUNK", chunk)
    for a, b in zip(SimOTA()(*case), whole, strict=True):
        assert torch.equal(a, b)


def by_hand() -> tuple[Cells, Tensor, Tensor, Tensor]:
    """A 4x4 grid of stride 8; cell 4 * row + column. Probabilities are 1/2 for all of it."""
    cells = grid(32, (8,))
    boxes = torch.tensor([[24.0, 24, 32, 32]]).repeat(16, 1)
    return cells, boxes, torch.zeros(16), torch.zeros(16, 2)


def test_worked_by_hand():
    """Object [0, 0, 16, 16]. Cells 0, 1, 4, 5 are in the box and near its centre (8, 8).

    Their IoUs are 1, 0.5, 0.5, 0.25, all others' 0: k = floor(2.25) = 2. With p = 1/2 the two
    classes cost 2 log 2 = 1.39 everywhere, and -3 log IoU is 0, 2.08, 2.08, 4.16. Cell 4 has
    sigma(2) = 0.88 as objectness, p = sqrt(0.88 / 2) = 0.66, and 0.41 + 1.09 = 1.50 as class cost:
    cells 0 and 1 win by 0.11. With sigma(2) for its class instead, and sigma(-9) for the other,
    cell 4 has p = 0.66 and 0.008, and costs 0.41 + 0.01: it wins against cell 1.
    """
    cells, boxes, objectness, classes = by_hand()
    boxes[0] = torch.tensor([0.0, 0, 16, 16])
    boxes[1] = torch.tensor([0.0, 0, 16, 8])
    boxes[4] = torch.tensor([0.0, 0, 8, 16])
    boxes[5] = torch.tensor([8.0, 8, 16, 16])
    one = targets([[0.0, 0, 16, 16]], [1])
    objectness[4] = 2
    assert assigned(SimOTA()(cells, boxes, objectness, classes, one)) == {0: 0, 1: 0}
    objectness[4] = 0
    classes[4] = torch.tensor([-9.0, 2])
    assert assigned(SimOTA()(cells, boxes, objectness, classes, one)) == {0: 0, 4: 0}


def test_a_contested_cell_goes_to_the_cheaper_object():
    """Two objects of one box, k = 1 each: both want cell 0, whose class is that of object 1.

    Object 0 is left without a positive, as in the paper.
    """
    cells, boxes, objectness, classes = by_hand()
    boxes[0] = torch.tensor([0.0, 0, 16, 16])
    classes[0] = torch.tensor([-3.0, 3])
    two = targets([[0.0, 0, 16, 16], [0.0, 0, 16, 16]], [0, 1])
    assert assigned(SimOTA()(cells, boxes, objectness, classes, two)) == {0: 1}


def test_a_contested_cell_may_go_to_an_object_that_did_not_claim_it():
    """Three objects of one box, classes 0, 1, 2; k = floor(1 + 0.9) = 1.

    Cell 0 has IoU 1 and p = 0.5, 0.5, 0.604: it costs objects 0 and 1 0.69 + 0.69 + 0.93 = 2.31,
    object 2 0.69 + 0.69 + 0.50 = 1.89. Cell 1 has IoU 0.9, which costs 0.32, and p = 0.21, 0.21,
    0.95: it costs object 2 0.24 + 0.24 + 0.05 + 0.32 = 0.84, the others 5.2. So objects 0 and 1
    claim cell 0, object 2 claims cell 1; and cell 0, claimed twice, is cheapest for object 2.
    """
    cells, boxes, objectness, _ = by_hand()
    boxes[0] = torch.tensor([0.0, 0, 16, 16])
    boxes[1] = torch.tensor([0.0, 0, 16, 14.4])
    classes = torch.zeros(16, 3)
    classes[0] = torch.tensor([0.0, 0, 1])
    classes[1] = torch.tensor([-3.0, -3, 3])
    objectness[1] = 3
    three = targets([[0.0, 0, 16, 16]] * 3, [0, 1, 2])
    assert assigned(SimOTA()(cells, boxes, objectness, classes, three)) == {0: 2, 1: 2}


def test_an_object_that_holds_no_centre_of_a_cell_gets_one_near_it():
    """Box [7, 7, 9, 9] lies between cells 0, 1, 4, 5: each costs 1e5 more, and the best is taken.

    Cells of the centre region reach to 20 pixels from (8, 8): all of rows and columns 0 to 2.
    """
    cells, boxes, objectness, classes = by_hand()
    boxes[10] = torch.tensor([7.0, 7, 9, 9])
    boxes[15] = torch.tensor([7.0, 7, 9, 9])
    small = targets([[7.0, 7, 9, 9]], [0])
    assert assigned(SimOTA()(cells, boxes, objectness, classes, small)) == {10: 0}
    # With a smaller radius of 1 the region ends before the centre of cell 10, at (20, 20).
    narrow = SimOTA(center_radius=1.0)(cells, boxes, objectness, classes, small)
    (cell,) = assigned(narrow)
    assert cell in (0, 1, 4, 5)


def test_a_box_without_area_trains():
    cells, boxes, objectness, classes = by_hand()
    flat = targets([[10.0, 3, 10, 20]], [0])
    assert len(assigned(SimOTA()(cells, boxes, objectness, classes, flat))) == 1


def test_an_object_far_outside_has_no_candidates():
    cells, boxes, objectness, classes = by_hand()
    outside = targets([[500.0, 500, 520, 520]], [0])
    assert assigned(SimOTA()(cells, boxes, objectness, classes, outside)) == {}


def test_crowds_are_ignored_and_never_positive():
    """The crowd covers columns 0, 1 and 3 pixels of column 2: 3/8 of it stays a negative."""
    cells, boxes, objectness, classes = by_hand()
    boxes[:] = torch.tensor([0.0, 0, 19, 32])
    crowd = targets([[0.0, 0, 19, 32]], [0], crowd=[True])
    kind, _ = SimOTA()(cells, boxes, objectness, classes, crowd)
    assert kind.reshape(4, 4).tolist() == [[IGNORED, IGNORED, NEGATIVE, NEGATIVE]] * 4
    # An object within the crowd keeps its positives, and its index counts the crowd.
    both = targets([[0.0, 0, 19, 32], [0, 0, 16, 16]], [0, 1], crowd=[True, False])
    boxes[0] = torch.tensor([0.0, 0, 16, 16])
    kind, matched = SimOTA()(cells, boxes, objectness, classes, both)
    assert kind[0] == POSITIVE
    assert matched[kind == POSITIVE].unique().tolist() == [1]
    assert IGNORED in kind[[1, 4, 5, 8, 9, 12, 13]]


def test_no_objects():
    cells, boxes, objectness, classes = by_hand()
    kind, matched = SimOTA()(cells, boxes, objectness, classes, Instances.empty((32, 32)))
    assert (kind == NEGATIVE).all()
    assert (matched == 0).all()


def test_probabilities_of_0_and_1_have_finite_costs():
    """Logits of +-1000: the cross-entropy is capped at 100 a class, and IoU still decides."""
    cells, boxes, objectness, classes = by_hand()
    objectness[:] = 1000
    classes[:] = torch.tensor([1000.0, -1000])
    boxes[5] = torch.tensor([0.0, 0, 16, 16])
    for label in (0, 1):
        one = targets([[0.0, 0, 16, 16]], [label])
        assert assigned(SimOTA()(cells, boxes, objectness, classes, one)) == {5: 0}


class LargestTensor(TorchDispatchMode):
    """Remembers the most bytes that any result had."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.size = max(self.size, value.numel() * value.element_size())
        return result


def test_thousands_of_objects_need_little_memory():
    """3,000 objects on the 8,400 cells of 640x640: one float matrix would be 100 MB."""
    cells = grid(640, (8, 16, 32))
    count = len(cells.strides)
    corner = torch.rand(3000, 2) * 600
    gt = torch.cat([corner, corner + 4 + torch.rand(3000, 2) * 36], dim=1)
    boxes = torch.cat([cells.centers - 10, cells.centers + 10], dim=1)
    many = Instances((640, 640), gt, torch.randint(0, 80, (3000,)))
    with LargestTensor() as largest:
        kind, matched = SimOTA()(cells, boxes, torch.randn(count), torch.randn(count, 80), many)
    # 16 MiB of float32, or twice that where indices are int64.
    assert largest.size <= 2**25
    assert 1000 < (kind == POSITIVE).sum() <= count
    assert matched.max() < 3000
