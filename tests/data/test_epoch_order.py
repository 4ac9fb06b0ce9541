"""The images of an epoch: how often each comes, against the definitions and plain loops."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from instseg.data.epoch_order import (
    ClassAware,
    EpochOrder,
    Occurrences,
    RepeatFactor,
    Shuffle,
    repeat_factors,
)

# Five images: classes {0}, {0, 2}, none, {0}, {2, 5}; 0 twice in the first.
OBJECTS = [(0, 0), (0, 0), (1, 0), (1, 2), (3, 0), (4, 5), (4, 2)]


def occurrences_of(objects: list[tuple[int, int]], num_images: int) -> Occurrences:
    images, labels = np.array(objects, dtype=np.int64).reshape(-1, 2).T
    return Occurrences.of_objects(images, labels, num_images)


FIVE = occurrences_of(OBJECTS, 5)


def test_each_class_counts_once_an_image() -> None:
    pairs = list(zip(FIVE.images.tolist(), FIVE.labels.tolist(), strict=True))
    assert pairs == sorted(set(OBJECTS))
    assert FIVE.kept(keep_empty=True).tolist() == [0, 1, 2, 3, 4]
    assert FIVE.kept(keep_empty=False).tolist() == [0, 1, 3, 4]
    # The order of the objects does not matter.
    again = occurrences_of(OBJECTS[::-1], 5)
    assert again.images.tolist() == FIVE.images.tolist()


def factors_by_hand(
    objects: list[tuple[int, int]], num_images: int, t: float, *, keep_empty: bool
) -> list[float]:
    """The definition, class by class and image by image."""
    classes: dict[int, set[int]] = {i: {c for j, c in objects if j == i} for i in range(num_images)}
    kept = [i for i in classes if classes[i] or keep_empty]
    r = {
        c: max(1.0, math.sqrt(t / (sum(c in classes[i] for i in kept) / len(kept))))
        for c in {c for _, c in objects}
    }
    return [
        max([r[c] for c in classes[i]], default=1.0) if i in kept else 0.0
        for i in range(num_images)
    ]


@pytest.mark.parametrize("keep_empty", [True, False])
@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.5, 1.0])
def test_repeat_factors(threshold: float, keep_empty: bool) -> None:
    rng = np.random.default_rng(1)
    many = [
        (int(i), int(c))
        for i, c in zip(rng.integers(0, 60, 99), rng.geometric(0.3, 99), strict=True)
    ]
    for objects, count in ((OBJECTS, 5), (many, 60)):
        found = repeat_factors(occurrences_of(objects, count), threshold, keep_empty=keep_empty)
        expected = factors_by_hand(objects, count, threshold, keep_empty=keep_empty)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_repeat_factors_of_a_hand_worked_case() -> None:
    """Of 5 images 3 have class 0, 2 class 2, 1 class 5; t = 0.8: sqrt(4/3), sqrt(2), 2."""
    found = repeat_factors(FIVE, 0.8)
    np.testing.assert_allclose(found, [math.sqrt(4 / 3), math.sqrt(2), 1, math.sqrt(4 / 3), 2])


def test_repeat_factor_draws_each_image_as_often_as_its_factor_says() -> None:
    factors = np.array([1.0, 1.25, 2.5, 0.0, 3.9, 1.7, 1.05])
    order = RepeatFactor(factors)
    assert len(order) == 11  # the sum is 11.4
    epochs = 4000
    counts = np.zeros((epochs, len(factors)))
    for epoch in range(epochs):
        drawn = order.draw(9, epoch)
        assert len(drawn) in (11, 12)
        counts[epoch] = np.bincount(drawn, minlength=len(factors))
    # floor(r) or one more, in the mean r: within five standard errors of a coin's.
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    fraction = factors % 1
    error = np.sqrt(fraction * (1 - fraction) / epochs)
    assert (abs(counts.mean(0) - factors) <= 5 * error + 1e-9).all()


def test_fractions_are_drawn_anew_each_epoch_and_images_shuffled() -> None:
    order = RepeatFactor(np.full(40, 1.5))
    assert len(order) == 60
    draws = [order.draw(0, epoch) for epoch in range(4)]
    assert all(len(draw) == 60 for draw in draws)  # the fractions add up to a whole number
    twice = {frozenset(i for i, n in Counter(draw.tolist()).items() if n == 2) for draw in draws}
    assert len(twice) == 4
    # An image's second time is anywhere in the epoch, not next to its first.
    neighbours = sum(int((np.diff(draw) == 0).sum()) for draw in draws)
    assert neighbours < 10


ORDERS: list[EpochOrder] = [
    Shuffle(np.array([3, 4, 7, 9, 12])),
    RepeatFactor(repeat_factors(FIVE, 0.8)),
    ClassAware(FIVE),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_draws_are_functions_of_seed_and_epoch(order: EpochOrder) -> None:
    def draws(seed: int, epochs: Any) -> list[list[int]]:
        return [order.draw(seed, epoch).tolist() for epoch in epochs]

    forward = draws(1, range(6))
    assert draws(1, reversed(range(6)))[::-1] == forward
    assert len(set(map(tuple, forward))) > 1
    assert draws(2, range(6)) != forward


def test_shuffle_takes_the_images_that_it_is_given() -> None:
    for epoch in range(5):
        assert sorted(ORDERS[0].draw(0, epoch).tolist()) == [3, 4, 7, 9, 12]


def class_aware_by_hand(draws: list[int], lists: list[list[int]]) -> None:
    """Check rounds of classes and passes through lists, for lists that share no image."""
    owner = {image: number for number, images in enumerate(lists) for image in images}
    classes = [owner[image] for image in draws]
    for start in range(0, len(draws), len(lists)):
        assert sorted(classes[start : start + len(lists)]) == list(range(len(lists)))
    for number, images in enumerate(lists):
        row = [image for image in draws if owner[image] == number]
        for start in range(0, len(row) - len(images) + 1, len(images)):
            assert sorted(row[start : start + len(images)]) == images


@pytest.mark.parametrize("sizes", [(1, 2, 11), (3, 4), (1,), (5, 5, 5), (1, 1, 1, 30)])
def test_class_aware_rounds_and_passes(sizes: tuple[int, ...]) -> None:
    """Over many epochs as if there were none: lists are used up across their borders."""
    starts = np.cumsum([0, *sizes]).tolist()
    lists = [list(range(a, b)) for a, b in pairwise(starts)]
    objects = [(image, 2 * number) for number, images in enumerate(lists) for image in images]
    order = ClassAware(occurrences_of(objects, starts[-1] + 2))
    assert len(order) == max(1, round(starts[-1] / len(sizes))) * len(sizes)
    draws = [order.draw(4, epoch).tolist() for epoch in range(12)]
    assert {len(draw) for draw in draws} == {len(order)}
    class_aware_by_hand([image for draw in draws for image in draw], lists)


def test_class_aware_shuffles_classes_and_lists() -> None:
    objects = [(image, image % 3) for image in range(30)]
    order = ClassAware(occurrences_of(objects, 30))
    draw = order.draw(0, 0)
    rounds = {tuple(draw[i : i + 3] % 3) for i in range(0, 30, 3)}
    assert len(rounds) > 2
    of_class = [tuple(order.draw(0, epoch)[order.draw(0, epoch) % 3 == 0]) for epoch in range(3)]
    assert len(set(of_class)) == 3


def test_class_aware_takes_images_without_objects_as_one_more_class() -> None:
    objects = [(0, 0), (1, 1), (2, 1)]
    with_empty = ClassAware(occurrences_of(objects, 6), keep_empty=True)  # 6 images, 3 classes
    for epoch in range(6):
        draw = with_empty.draw(0, epoch)
        kinds = Counter("a" if i == 0 else "b" if i < 3 else "none" for i in draw.tolist())
        assert kinds == {"a": 2, "b": 2, "none": 2}
    assert not set(ClassAware(occurrences_of(objects, 6)).draw(0, 0).tolist()) & {3, 4, 5}
    # Without such images there is no such class.
    full = ClassAware(occurrences_of(objects, 3), keep_empty=True)
    assert Counter(full.draw(0, 0).tolist())[0] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: repeat_factors(FIVE, 0.0), r"threshold must be in \(0, 1\], got 0"),
        (lambda: RepeatFactor(np.zeros(3)), "no image has an object"),
        (lambda: ClassAware(occurrences_of([], 3)), "no image has an object"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
