import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.boundary_f import boundary_pixels, boundary_scores, tolerance_in_pixels
from instseg.evaluation.semantic import SemanticEvaluator

Map = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def outline(class_map: Map, valid: Mask, class_id: int) -> list[tuple[int, int]]:
    """From the definition, one pixel and one neighbour at a time."""
    H, W = class_map.shape
    found = []
    for i in range(H):
        for j in range(W):
            if class_map[i, j] != class_id or not valid[i, j]:
                continue
            around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            if any(
                0 <= a < H and 0 <= b < W and valid[a, b] and class_map[a, b] != class_id
                for a, b in around
            ):
                found.append((i, j))
    return found


def share_near(a: list[tuple[int, int]], b: list[tuple[int, int]], distance: float) -> float:
    if not a:
        return -1.0
    return sum(any(math.dist(p, q) <= distance for q in b) for p in a) / len(a)


def by_loops(
    prediction: Map, target: Map, valid: Mask, distance: float
) -> dict[int, tuple[float, float, float]]:
    scores = {}
    for c in range(5):
        a, b = outline(prediction, valid, c), outline(target, valid, c)
        if a or b:
            p, r = share_near(a, b, distance), share_near(b, a, distance)
            scores[c] = (p, r, 2 * p * r / (p + r) if p > 0 and r > 0 else 0.0)
    return scores


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    distance=st.sampled_from([1, 1.5, 2, 3, 5]),
)
def test_equals_loops(seed: int, height: int, width: int, distance: float) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 4, (2, (height + 2) // 3, (width + 2) // 3))
    target, other = blocks.repeat(3, axis=1).repeat(3, axis=2)[:, :height, :width]
    prediction = np.where(rng.random(target.shape) < 0.1, other, target)
    valid = rng.random(target.shape) < 0.9
    scores = boundary_scores(prediction, target, valid, distance)
    expected = by_loops(prediction, target, valid, distance)
    assert set(scores) == set(expected)
    for class_id, values in expected.items():
        assert scores[class_id] == pytest.approx(values, abs=1e-12)


def square(top: int, left: int, side: int) -> Map:
    made = np.zeros((40, 40), dtype=np.int64)
    made[top : top + side, left : left + side] = 1
    return made


def test_hand_worked_shift_of_a_square() -> None:
    target, prediction = square(10, 10, 10), square(10, 13, 10)
    everywhere = np.full((40, 40), True)
    # Of 36 boundary pixels of each square, 14 lie on the other's top or bottom line, and of those
    # at a distance of 2 or less are two more of the top and bottom lines each; the side in the
    # inside of the other square is 3 and more away from its sides except near the corners, where
    # the rows one and two below the top (above the bottom) line are near: 4 pixels.
    precision, recall, f = boundary_scores(prediction, target, everywhere, 2.0)[1]
    assert precision == recall == f == pytest.approx((14 + 4 + 4) / 36)
    assert boundary_scores(prediction, target, everywhere, 3.0)[1] == (1.0, 1.0, 1.0)


def test_edges_of_image_and_ignored_area_are_no_boundary() -> None:
    full = np.ones((5, 5), dtype=np.int64)
    assert not boundary_pixels(full, np.full((5, 5), True)).any()
    halves = np.array([[0, 0, 1, 1]] * 3)
    valid = np.array([[True, True, False, True]] * 3)
    assert not boundary_pixels(halves, valid).any()
    assert (
        boundary_pixels(halves, np.full((3, 4), True)).tolist() == [[False, True, True, False]] * 3
    )


def test_a_boundary_in_one_map_alone() -> None:
    everywhere = np.full((40, 40), True)
    nothing = np.zeros((40, 40), dtype=np.int64)
    assert boundary_scores(nothing, square(5, 5, 4), everywhere, 2)[1] == (-1.0, 0.0, 0.0)
    assert boundary_scores(square(5, 5, 4), nothing, everywhere, 2)[1] == (0.0, -1.0, 0.0)


def test_tolerance_is_a_fraction_of_the_diagonal_rounded_up_or_pixels() -> None:
    assert tolerance_in_pixels(0.0075, (300, 400)) == 4  # 3.75
    assert tolerance_in_pixels(0.008, (480, 854)) == 8  # DAVIS at 480p
    assert tolerance_in_pixels(2.5, (300, 400)) == 2.5
    assert tolerance_in_pixels(0, (300, 400)) == 0
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"boundary_tolerance must be .* got {wrong}"):
            tolerance_in_pixels(wrong, (3, 4))


def test_evaluator_averages_over_the_images_that_have_the_class() -> None:
    nothing = np.zeros((40, 40), dtype=np.int64)
    evaluator = SemanticEvaluator(["back", "square", "never"], boundary_tolerance=2)
    evaluator.update(
        [1, 2, 3, 4],
        [square(10, 10, 10), square(10, 13, 10), nothing, nothing],
        [square(10, 10, 10), square(10, 10, 10), square(10, 10, 10), nothing],
    )
    scores = evaluator.compute()
    shifted = 22 / 36
    assert scores.per_class["square"]["boundary_f"] == pytest.approx((1 + shifted + 0) / 3)
    assert scores.per_class["square"]["boundary_precision"] == pytest.approx((1 + shifted) / 2)
    assert scores.per_class["square"]["boundary_recall"] == pytest.approx((1 + shifted + 0) / 3)
    assert scores.per_class["never"]["boundary_f"] == -1.0
    both = (scores.per_class["back"]["boundary_f"] + scores.per_class["square"]["boundary_f"]) / 2
    assert scores.stats["boundary_f"] == pytest.approx(both)
