from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from instseg.models import matcher as matching
from instseg.models.default_boxes import DefaultBoxMatcher
from instseg.models.matcher import IGNORED, NEGATIVE, POSITIVE, Matcher, Sampler
from instseg.structures import Instances
from tests.contracts.reference import iou


def objects(*boxes: list[float], crowd: list[bool] | None = None) -> Instances:
    return Instances(
        (200, 200),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(len(boxes)),
        is_crowd=None if crowd is None else torch.tensor(crowd, dtype=torch.bool),
    )


def kinds(matcher: Matcher, boxes: list[list[float]], targets: Instances) -> list[int]:
    return matcher(torch.tensor(boxes), targets)[0].tolist()


SQUARE = [0.0, 0.0, 10.0, 10.0]
REGION = [0.0, 0.0, 100.0, 100.0]
LOW = Matcher(0.7, 0.3, allow_low_quality=True)


def part(height: float) -> list[float]:
    """A box inside `SQUARE` with IoU height / 10."""
    return [0.0, 0.0, 10.0, height]


def test_thresholds_are_inclusive_below():
    """IoU 0.5 and 0.25 are exact in binary: they fall on the thresholds, not beside them."""
    matcher = Matcher(0.5, 0.25)
    boxes = [part(10), part(5), part(4.99), part(2.5), part(2.49), [50.0, 50, 60, 60]]
    expected = [POSITIVE, POSITIVE, IGNORED, IGNORED, NEGATIVE, NEGATIVE]
    assert kinds(matcher, boxes, objects(SQUARE)) == expected


def test_the_published_thresholds():
    boxes = [part(7), part(6.99), part(3), part(2.99)]
    expected = [POSITIVE, IGNORED, IGNORED, NEGATIVE]
    assert kinds(Matcher(0.7, 0.3), boxes, objects(SQUARE)) == expected


def test_equal_thresholds_ignore_nothing():
    boxes = [part(5), part(4.99), part(0.1)]
    assert kinds(Matcher(0.5, 0.5), boxes, objects(SQUARE)) == [POSITIVE, NEGATIVE, NEGATIVE]


def test_each_box_gets_its_best_object():
    targets = objects([0, 0, 10, 10], [6, 0, 16, 10])
    kind, matched = Matcher(0.5, 0.5)(
        torch.tensor([[1.0, 0, 11, 10], [5, 0, 15, 10], [0, 0, 10, 10]]), targets
    )
    assert kind.tolist() == [POSITIVE] * 3
    assert matched.tolist() == [0, 1, 0]
    assert kind.dtype == torch.int8
    assert matched.dtype == torch.int64


class TestLowQuality:
    def test_the_best_box_of_an_object_becomes_positive(self):
        boxes = [part(2), part(1), [50.0, 50, 60, 60]]
        assert kinds(Matcher(0.7, 0.3), boxes, objects(SQUARE)) == [NEGATIVE] * 3
        assert kinds(LOW, boxes, objects(SQUARE)) == [POSITIVE, NEGATIVE, NEGATIVE]

    def test_an_ignored_box_too(self):
        assert kinds(LOW, [part(5), part(4)], objects(SQUARE)) == [POSITIVE, IGNORED]

    def test_all_boxes_that_tie(self):
        boxes = [part(2), [0.0, 8, 10, 10], part(1)]
        assert kinds(LOW, boxes, objects(SQUARE)) == [POSITIVE, POSITIVE, NEGATIVE]

    def test_each_object_has_its_own(self):
        targets = objects([0, 0, 10, 10], [100, 100, 110, 110])
        kind, matched = LOW(torch.tensor([part(10), part(2), [100.0, 100, 110, 101]]), targets)
        # The box that covers the first object well keeps part(2) from being its best.
        assert kind.tolist() == [POSITIVE, NEGATIVE, POSITIVE]
        assert matched[[0, 2]].tolist() == [0, 1]

    def test_a_box_is_matched_to_its_own_best_object(self):
        """The box is the best of the second object, but overlaps the first one more."""
        targets = objects([0, 0, 10, 10], [0, 0, 100, 100])
        kind, matched = LOW(torch.tensor([part(9), [150.0, 150, 160, 160]]), targets)
        assert kind.tolist() == [POSITIVE, NEGATIVE]
        assert matched[0] == 0

    def test_an_object_that_no_box_overlaps_makes_no_positives(self):
        boxes = [part(10), [20.0, 20, 30, 30], [70.0, 70, 80, 80]]
        assert kinds(LOW, boxes, objects([50, 50, 51, 51])) == [NEGATIVE] * 3
        assert kinds(LOW, boxes, objects(SQUARE, [50, 50, 50, 50])) == [POSITIVE, 0, 0]


class TestCrowd:
    def test_negatives_inside_are_ignored_never_positive(self):
        """Even a box equal to the crowd region."""
        boxes = [REGION, [10.0, 10, 20, 20], [150.0, 150, 160, 160]]
        kind = kinds(LOW, boxes, objects(REGION, crowd=[True]))
        assert kind == [IGNORED, IGNORED, NEGATIVE]

    def test_the_share_is_inclusive(self):
        boxes = [[95.0, 0, 105, 10], [95.5, 0, 105.5, 10], [0, 90, 10, 110]]
        kind = kinds(Matcher(0.5, 0.5), boxes, objects(REGION, crowd=[True]))
        assert kind == [IGNORED, NEGATIVE, IGNORED]

    def test_the_share_is_of_the_box_not_of_the_union(self):
        """A small box inside a large crowd has IoU 0.01 with it, and is ignored nevertheless."""
        assert kinds(LOW, [part(10)], objects(REGION, crowd=[True])) == [IGNORED]

    def test_the_share_can_be_set(self):
        boxes, targets = [[95.0, 0, 105, 10]], objects(REGION, crowd=[True])
        assert kinds(Matcher(0.5, 0.5, crowd_ioa=0.6), boxes, targets) == [NEGATIVE]
        assert kinds(Matcher(0.5, 0.5, crowd_ioa=0.4), boxes, targets) == [IGNORED]

    def test_regions_do_not_add_up(self):
        """Each holds 0.4 of the box."""
        targets = objects([0, 0, 4, 10], [6, 0, 10, 10], crowd=[True, True])
        assert kinds(Matcher(0.5, 0.5), [SQUARE], targets) == [NEGATIVE]

    def test_positives_inside_stay(self):
        """A good and a low-quality one; the box index is that of all objects, crowds included."""
        targets = objects(REGION, [0, 0, 10, 10], [50, 50, 60, 60], crowd=[True, False, False])
        boxes = torch.tensor([part(9), [50.0, 50, 60, 51], [30.0, 30, 40, 40]])
        kind, matched = LOW(boxes, targets)
        assert kind.tolist() == [POSITIVE, POSITIVE, IGNORED]
        assert matched[:2].tolist() == [1, 2]

    def test_crowds_do_not_take_the_best_box_from_an_object(self):
        targets = objects(SQUARE, SQUARE, crowd=[True, False])
        kind, matched = LOW(torch.tensor([part(8)]), targets)
        assert kind.tolist() == [POSITIVE]
        assert matched.tolist() == [1]


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_no_objects_is_all_negative(allow_low_quality):
    matcher = Matcher(0.7, 0.3, allow_low_quality=allow_low_quality)
    kind, matched = matcher(torch.tensor([SQUARE, part(3)]), Instances.empty((50, 50)))
    assert kind.tolist() == [NEGATIVE, NEGATIVE]
    assert matched.tolist() == [0, 0]


def test_no_boxes_without_objects():
    kind, matched = Matcher(0.7, 0.3)(torch.zeros(0, 4), Instances.empty((50, 50)))
    assert kind.shape == matched.shape == (0,)


def random_case(seed: int) -> tuple[Tensor, Instances]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(60, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + 10 + torch.rand(60, 2, generator=generator) * 60], dim=1)
    # Objects are boxes moved a little, so that every range of IoU occurs.
    shift = torch.randn(5, 4, generator=generator) * 4
    return boxes[5:], objects(*(boxes[:5] + shift).tolist())


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_torchvision(seed, allow_low_quality):
    boxes, targets = random_case(seed)
    kind, matched = Matcher(0.5, 0.2, allow_low_quality=allow_low_quality)(boxes, targets)
    reference = TorchvisionMatcher(0.5, 0.2, allow_low_quality)(box_iou(targets.boxes, boxes))
    assert torch.equal(kind == POSITIVE, reference >= 0)
    assert torch.equal(kind == NEGATIVE, reference == -1)
    assert torch.equal(matched[kind == POSITIVE], reference[reference >= 0])
    assert {POSITIVE, NEGATIVE, IGNORED} <= set(kind.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_loops_from_the_definition(seed):
    boxes, targets = random_case(seed)
    table = np.array(
        [[iou(b, t) for t in targets.boxes.double().numpy()] for b in boxes.double().numpy()]
    )
    kind, matched = Matcher(0.5, 0.2, allow_low_quality=True)(boxes, targets)
    for row, k, m in zip(table, kind.tolist(), matched.tolist(), strict=True):
        best_of_an_object = any(row[t] == table[:, t].max() for t in range(len(targets)))
        if row.max() >= 0.5 or best_of_an_object:
            assert k == POSITIVE
            assert m == row.argmax()
        else:
            assert k == (IGNORED if row.max() >= 0.2 else NEGATIVE)


@pytest.mark.parametrize("matcher", [LOW, Matcher(0.5, 0.2), DefaultBoxMatcher()])
@pytest.mark.parametrize("seed", range(3))
def test_many_objects_are_matched_by_parts_with_the_same_result(seed, matcher, monkeypatch):
    """Every object is there twice, so that the best is tied across parts."""
    boxes, targets = random_case(seed)
    targets = objects(*targets.boxes.tolist() * 2)
    whole = matcher(boxes, targets)
    sizes = []

    def watched(first: Tensor, second: Tensor) -> Tensor:
        sizes.append(len(first) * len(second))
        return box_iou(first, second)

    monkeypatch.setattr(matching, "box_iou", watched)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 200)  # of 10 objects, 3 with 55 boxes
    by_parts = matcher(boxes, targets)
    assert sizes[:4] == [165, 165, 165, 55]
    for got, wanted in zip(by_parts, whole, strict=True):
        assert torch.equal(got, wanted)
    assert {POSITIVE, NEGATIVE} <= set(whole[0].tolist())


def kind_of(positives: int, negatives: int, ignored: int = 0) -> Tensor:
    counts = {POSITIVE: positives, NEGATIVE: negatives, IGNORED: ignored}
    kind = torch.cat([torch.full((n,), k, dtype=torch.int8) for k, n in counts.items()])
    return kind[torch.randperm(len(kind), generator=torch.Generator().manual_seed(0))]


class TestSampler:
    @pytest.mark.parametrize(
        ("positives", "negatives", "expected"),
        [
            (100, 100, (4, 12)),
            (4, 100, (4, 12)),
            (1, 100, (1, 15)),
            (0, 100, (0, 16)),
            (100, 3, (4, 3)),
            (100, 0, (4, 0)),
            (0, 5, (0, 5)),
            (0, 0, (0, 0)),
        ],
    )
    def test_counts(self, positives, negatives, expected):
        """16 boxes, at most a quarter positive; negatives fill up, positives never do."""
        kind = kind_of(positives, negatives, ignored=50)
        positive, negative = Sampler(16, 0.25)(kind)
        assert (len(positive), len(negative)) == expected
        assert (kind[positive] == POSITIVE).all()
        assert (kind[negative] == NEGATIVE).all()
        assert len(set(positive.tolist())) == len(positive)
        assert len(set(negative.tolist())) == len(negative)

    @pytest.mark.parametrize(("fraction", "expected"), [(0.0, (0, 10)), (1.0, (10, 0))])
    def test_extreme_fractions(self, fraction, expected):
        positive, negative = Sampler(10, fraction)(kind_of(20, 20))
        assert (len(positive), len(negative)) == expected

    def test_only_ignored_draws_nothing(self):
        positive, negative = Sampler(16, 0.5)(kind_of(0, 0, ignored=9))
        assert len(positive) == len(negative) == 0

    @pytest.mark.parametrize(("positives", "negatives"), [(40, 300), (2, 300), (40, 3)])
    def test_same_draw_as_torchvision(self, positives, negatives):
        kind = kind_of(positives, negatives, ignored=20)
        torch.manual_seed(5)
        ours = Sampler(32, 0.5)(kind)
        torch.manual_seed(5)
        theirs = BalancedPositiveNegativeSampler(32, 0.5)([kind])
        for indices, (mask,) in zip(ours, theirs, strict=True):
            assert sorted(indices.tolist()) == mask.nonzero()[:, 0].tolist()

    def test_every_box_is_as_likely(self):
        kind = kind_of(20, 40)
        drawn = torch.zeros(len(kind))
        rounds = 2000
        sampler = Sampler(20, 0.5)
        for _ in range(rounds):
            for indices in sampler(kind):
                drawn[indices] += 1
        # 10 of 20 positives and 10 of 40 negatives; five standard deviations of a binomial.
        for wanted, share in ((POSITIVE, 0.5), (NEGATIVE, 0.25)):
            deviation = (share * (1 - share) / rounds) ** 0.5
            assert (drawn[kind == wanted] / rounds - share).abs().max() < 5 * deviation
