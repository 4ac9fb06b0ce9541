"""Error types planted by hand, and costs worked out by hand."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from instseg.evaluation.reasons.errors import ErrorType
from tests.evaluation.reasons.sets import BOTH, Record, annotation, detection, reasons_of

CAT, DOG, COW = 1, 4, 9
NAMES = [e.name.lower() for e in ErrorType]
Plant = tuple[list[Record], list[Record]]
A, B = [100.0, 100.0, 40.0, 40.0], [300.0, 100.0, 40.0, 40.0]


def beside(box: list[float]) -> list[float]:
    """Moved by half its width: IoU 1/3."""
    return [box[0] + box[2] / 2, *box[1:]]


def near(box: list[float]) -> list[float]:
    return [box[0] + 2, *box[1:]]


def correct(i: int, b: list[float]) -> Plant:
    return [annotation(i, CAT, b)], [detection(i, CAT, 0.9, b)]


def classification(i: int, b: list[float]) -> Plant:
    return [annotation(i, CAT, b)], [detection(i, DOG, 0.8, near(b))]


def localisation(i: int, b: list[float]) -> Plant:
    return [annotation(i, DOG, b)], [detection(i, DOG, 0.7, beside(b))]


def both(i: int, b: list[float]) -> Plant:
    """The wrong category, in the wrong place, on an object that something else finds."""
    return [annotation(i, CAT, b)], [
        detection(i, CAT, 0.9, b),
        detection(i, DOG, 0.6, beside(b)),
    ]


def duplicate(i: int, b: list[float]) -> Plant:
    return [annotation(i, COW, b)], [detection(i, COW, 0.9, near(b)), detection(i, COW, 0.5, b)]


def background(i: int, b: list[float]) -> Plant:
    return [], [detection(i, CAT, 0.4, b)]


def missed(i: int, b: list[float]) -> Plant:
    return [annotation(i, CAT, b)], []


def excused(i: int, b: list[float]) -> Plant:
    """Two detections inside a crowd, which is no object to be missed either."""
    inside = [b[0] + 5, b[1], 10.0, 10.0]
    return [annotation(i, DOG, b, crowd=1)], [
        detection(i, DOG, 0.9, b),
        detection(i, DOG, 0.8, inside),
    ]


def beside_a_crowd(i: int, b: list[float]) -> Plant:
    """A third of the detection lies in a crowd of its category: too little to be excused."""
    left = [b[0] - b[2] * 2 / 3, *b[1:]]
    return [annotation(i, DOG, b, crowd=1)], [detection(i, DOG, 0.9, left)]


PLANTS: dict[Callable[[int, list[float]], Plant], str | None] = {
    correct: None,
    classification: "classification",
    localisation: "localisation",
    both: "both",
    duplicate: "duplicate",
    background: "background",
    missed: "missed",
    excused: None,
    beside_a_crowd: "background",
}


@pytest.mark.parametrize("iou_type", BOTH)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_one_planted_error(plant: Callable[[int, list[float]], Plant], iou_type: str) -> None:
    errors = reasons_of(*plant(1, A), iou_type).errors
    expected = dict.fromkeys(NAMES, 0)
    if name := PLANTS[plant]:
        expected[name] = 1
    assert {name: error.count for name, error in errors.items()} == expected


@pytest.mark.parametrize("iou_type", BOTH)
@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_on_several_images(seed: int, iou_type: str) -> None:
    """Sixty plants in five images, in cells of their own."""
    rng = np.random.default_rng(seed)
    annotations: list[Record] = []
    detections: list[Record] = []
    planted: Counter[str | None] = Counter()
    plants = list(PLANTS)
    for image in range(1, 6):
        for cell in range(12):
            plant = plants[rng.integers(len(plants))]
            box = [45.0 + 115 * (cell % 4), 20.0 + 120 * (cell // 4), 40.0, 40.0]
            new_annotations, new_detections = plant(image, box)
            annotations += new_annotations
            detections += new_detections
            planted[PLANTS[plant]] += 1
    rng.shuffle(annotations)
    rng.shuffle(detections)
    errors = reasons_of(annotations, detections, iou_type, images=5).errors
    assert {name: e.count for name, e in errors.items()} == {n: planted[n] for n in NAMES}
    assert all(planted[name] for name in NAMES)


def test_masks_decide_for_masks() -> None:
    """The same box, but a mask of 30 % of it."""
    sets = [annotation(1, CAT, A)], [detection(1, CAT, 0.9, A, height=0.3)]
    assert reasons_of(*sets, "bbox").errors["localisation"].count == 0
    assert reasons_of(*sets, "segm").errors["localisation"].count == 1


def test_an_object_with_an_error_of_both_is_missed_too() -> None:
    errors = reasons_of([annotation(1, CAT, A)], [detection(1, DOG, 0.9, beside(A))]).errors
    assert errors["both"].count == errors["missed"].count == 1


def test_localisation_goes_before_classification_and_that_before_duplicate() -> None:
    """The order of the authors' code."""
    cat, dog = annotation(1, CAT, beside(A)), annotation(1, DOG, A)
    errors = reasons_of([cat, dog], [detection(1, CAT, 0.9, A)]).errors
    assert (errors["localisation"].count, errors["classification"].count) == (1, 0)
    both_there = [annotation(1, CAT, A), annotation(1, DOG, A)]
    twice = [detection(1, CAT, 0.9, A), detection(1, CAT, 0.8, A)]
    errors = reasons_of(both_there, twice).errors
    assert (errors["classification"].count, errors["duplicate"].count) == (1, 0)


@pytest.mark.parametrize("iou_type", BOTH)
def test_the_limits_of_the_ious(iou_type: str) -> None:
    """IoU 1/10 is already a localisation error, 1/2 already a find."""
    tenth, half = [100.0, 100.0, 4.0, 40.0], [100.0, 100.0, 20.0, 40.0]
    for box, name in ((tenth, "localisation"), (half, None)):
        errors = reasons_of([annotation(1, CAT, A)], [detection(1, CAT, 0.9, box)], iou_type).errors
        assert {n for n, e in errors.items() if e.count} == ({name} if name else set())


CAT_A, DOG_B = annotation(1, CAT, A), annotation(1, DOG, B)
COSTS = {
    "a dog for a cat": ([CAT_A], [detection(1, DOG, 0.9, A)], {"classification": 1.0}),
    "half beside": ([CAT_A], [detection(1, CAT, 0.9, beside(A))], {"localisation": 1.0}),
    # One becomes correct, the other vanishes.
    "half beside, twice": (
        [CAT_A],
        [detection(1, CAT, 0.9, beside(A)), detection(1, CAT, 0.8, beside(A))],
        {"localisation": 1.0},
    ),
    # Found at 0.5: the better one could only be a duplicate, so it vanishes; precision 1/2 -> 1.
    "half beside what is found": (
        [CAT_A],
        [detection(1, CAT, 0.5, A), detection(1, CAT, 0.9, beside(A))],
        {"localisation": 0.5},
    ),
    # Each type is mended by itself, though both errors are on one object.
    "two types on one object": (
        [CAT_A],
        [detection(1, DOG, 0.9, A), detection(1, CAT, 0.5, beside(A))],
        {"classification": 1.0, "localisation": 1.0},
    ),
    # Cats: 51 recalls of precision 1 and 50 of 2/3, then 1.
    "a duplicate before the second cat": (
        [CAT_A, annotation(1, CAT, B)],
        [detection(1, CAT, 0.9, A), detection(1, CAT, 0.8, near(A)), detection(1, CAT, 0.7, B)],
        {"duplicate": 50 / 303},
    ),
    "background first": (
        [CAT_A],
        [detection(1, CAT, 0.95, B), detection(1, CAT, 0.9, A)],
        {"background": 0.5},
    ),
    # Cats have 1/2, for the better detection is on half a dog; dogs 0. Without that detection cats
    # have 1; without the dog, cats alone count.
    "both and missed": (
        [CAT_A, DOG_B],
        [detection(1, CAT, 0.9, beside(B)), detection(1, CAT, 0.8, A)],
        {"both": 0.25, "missed": 0.25},
    ),
    # 51 of 101 recalls are reached, then all.
    "one of two missed": (
        [CAT_A, annotation(1, CAT, B)],
        [detection(1, CAT, 0.9, A)],
        {"missed": 50 / 101},
    ),
    "all missed": ([CAT_A, DOG_B], [], {"missed": 1.0}),
    # No cat is left to find, but a false one is left over.
    "missed, and a false one": (
        [CAT_A, DOG_B],
        [detection(1, DOG, 0.9, B), detection(1, CAT, 0.9, [400, 300, 40, 40])],
        {"missed": 0.0, "background": 0.0},
    ),
    # Cows have no ground truth, so COCO has no AP of theirs.
    "a category without objects": (
        [CAT_A],
        [detection(1, CAT, 0.9, A), detection(1, COW, 1.0, B)],
        {"background": 0.0},
    ),
    "no ground truth": ([], [detection(1, COW, 1.0, B)], {"background": 0.0}),
}


@pytest.mark.parametrize("iou_type", BOTH)
@pytest.mark.parametrize("case", COSTS)
def test_costs(case: str, iou_type: str) -> None:
    annotations, detections, expected = COSTS[case]
    errors = reasons_of(annotations, detections, iou_type).errors
    assert {name for name, error in errors.items() if error.count} == set(expected)
    costs = {name: error.delta_ap for name, error in errors.items()}
    assert costs == pytest.approx(dict.fromkeys(NAMES, 0.0) | expected)
