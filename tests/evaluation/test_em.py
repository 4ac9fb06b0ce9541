import itertools
import json
import math
import pickle
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.em import SCORE_NAMES, EmEvaluator, em_scores, label_cells, thin_borders

Labels = npt.NDArray[np.int32]


def labels(rows: list[list[int]]) -> Labels:
    return np.array(rows, dtype=np.int32)


def rand_by_pairs(s: list[int], t: list[int]) -> dict[str, float]:
    """V_rand's meaning: of two pixels drawn with replacement, do both maps put them together?"""
    together_s = together_t = both = 0
    for i, j in itertools.product(range(len(s)), repeat=2):
        together_s += s[i] == s[j]
        together_t += t[i] == t[j]
        both += s[i] == s[j] and t[i] == t[j]
    split, merge = both / together_t, both / together_s
    return {
        "v_rand": 2 / (1 / split + 1 / merge),
        "v_rand_split": split,
        "v_rand_merge": merge,
    }


def info_by_sums(s: list[int], t: list[int]) -> dict[str, float]:
    """I(S;T) = sum p log p / (s t), and its ratios to the entropies; their harmonic mean."""
    n = len(s)
    h_s = -sum(s.count(i) / n * math.log(s.count(i) / n) for i in set(s))
    h_t = -sum(t.count(j) / n * math.log(t.count(j) / n) for j in set(t))
    both = list(zip(s, t, strict=True))
    information = sum(
        both.count((i, j)) / n * math.log(both.count((i, j)) * n / (s.count(i) * t.count(j)))
        for i, j in set(both)
    )
    return {
        "v_info": 2 * information / (h_s + h_t) if h_s + h_t else 1.0,
        "v_info_split": information / h_s if h_s else 1.0,
        "v_info_merge": information / h_t if h_t else 1.0,
    }


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), kinds=st.integers(1, 6))
def test_equals_pairs_of_pixels_and_sums(seed: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, kinds + 1, (6, 7)).astype(np.int32)
    truth[0, 0] = 1
    segments = rng.integers(1, kinds + 1, (6, 7)).astype(np.int32)
    scores = em_scores(segments, truth)
    s, t = segments[truth > 0].tolist(), truth[truth > 0].tolist()
    assert scores == pytest.approx(rand_by_pairs(s, t) | info_by_sums(s, t), abs=1e-12)


def test_hand_worked_split_and_merge() -> None:
    truth = labels([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    halves = labels([[1, 1, 2, 2, 2, 3, 3, 3, 3]])
    scores = em_scores(halves, truth)
    assert scores is not None
    # Sum p^2 = (4 + 4 + 16) / 64, sum t^2 = (16 + 16) / 64.
    assert scores["v_rand_split"] == pytest.approx(24 / 32)
    assert scores["v_rand_merge"] == pytest.approx(1.0)
    assert scores["v_rand"] == pytest.approx(24 / 28)
    # H(S) = 1.5 bits, H(T) = I = 1 bit.
    assert scores["v_info_split"] == pytest.approx(1 / 1.5)
    assert scores["v_info_merge"] == pytest.approx(1.0)
    merged = em_scores(labels([[5] * 9]), truth)
    assert merged == pytest.approx(
        {
            "v_rand": 2 * 0.5 / 1.5,
            "v_rand_split": 1.0,
            "v_rand_merge": 0.5,
            "v_info": 0.0,
            "v_info_split": 1.0,
            "v_info_merge": 0.0,
        }
    )


def test_true_membrane_is_left_out_and_predicted_width_does_not_count() -> None:
    truth = labels([[1] * 5 + [0] + [2] * 5])
    wide = labels([[7, 7, 7, 0, 0, 0, 0, 0, 3, 3, 3]])
    assert em_scores(wide, truth) == pytest.approx(dict.fromkeys(SCORE_NAMES, 1.0))
    spot = labels([[7, 7, 7, 7, 7, 9, 3, 3, 3, 3, 3]])
    assert em_scores(spot, truth) == pytest.approx(dict.fromkeys(SCORE_NAMES, 1.0))
    assert em_scores(spot, np.zeros_like(truth)) is None


def test_thin_borders_takes_the_nearest_label() -> None:
    rng = np.random.default_rng(4)
    segments = np.where(rng.random((30, 30)) < 0.05, rng.integers(1, 9, (30, 30)), 0)
    thinned = thin_borders(segments.astype(np.int32))
    seeds = np.argwhere(segments > 0)
    for i, j in np.ndindex(30, 30):
        distances = np.hypot(*(seeds - (i, j)).T)
        own = distances[segments[segments > 0] == thinned[i, j]]
        # The chamfer distance is within 5 % of the Euclidean.
        assert own.min() <= 1.05 * distances.min()
    assert (thinned[segments > 0] == segments[segments > 0]).all()
    empty = np.zeros((3, 3), dtype=np.int32)
    assert (thin_borders(empty) == empty).all()


def test_cells_are_4_connected() -> None:
    cells = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=bool)
    found = label_cells(cells)
    assert found[0, 0] == found[0, 1] != found[1, 2] == found[2, 2]
    assert (found[~cells] == 0).all()
    assert found.max() == 2


def test_evaluator_takes_one_threshold_for_all_slices() -> None:
    truth = np.array([[1, 1, 1, 0, 1, 1, 1]])
    weak = np.array([[0, 0, 0, 0.35, 0, 0, 0]])  # membrane seen up to 0.3
    noisy = np.array([[0, 0.32, 0, 0.9, 0, 0, 0]])  # a false one up to 0.3
    evaluator = EmEvaluator(thresholds=(0.3, 0.5))
    evaluator.update(["weak", "noisy"], [weak, noisy], [truth, truth])
    scores = evaluator.compute()
    each = [
        em_scores(label_cells(m < t), label_cells(truth > 0))
        for t in (0.3, 0.5)
        for m in (weak, noisy)
    ]
    for name in SCORE_NAMES:
        values = [row[name] for row in each if row]
        expected = ((values[0] + values[1]) / 2, (values[2] + values[3]) / 2)
        assert scores.per_threshold[name] == pytest.approx(expected)
    best = int(np.argmax(scores.per_threshold["v_rand"]))
    assert scores.stats["v_rand_threshold"] == (0.3, 0.5)[best]
    assert scores.stats["v_rand_merge"] == scores.per_threshold["v_rand_merge"][best]
    assert json.loads(json.dumps(scores.to_dict()))["stats"] == scores.stats


def test_shards_merge_pickle_and_slices_without_cells_are_left_out() -> None:
    truth = np.array([[1, 1, 0, 1, 1]])
    membrane = 1.0 - truth
    whole, part, other = EmEvaluator(), EmEvaluator(), EmEvaluator()
    empty = np.zeros_like(truth)
    whole.update([1, 2, 3], [membrane, membrane * 0.05, membrane], [truth, truth, empty])
    part.update([1, 2, 1], [membrane, membrane * 0.05, empty], [truth] * 3)
    other.update([2, 3], [empty, membrane], [truth, empty])
    part.merge(pickle.loads(pickle.dumps(other)))
    assert part.compute() == whole.compute()
    assert whole.compute().images == 3
    assert whole.compute().stats["v_rand"] == pytest.approx((1 + 2 / 3) / 2)
    whole.reset()
    assert set(whole.compute().stats.values()) == {-1.0}


def test_bad_input() -> None:
    for thresholds in ((), (0.0,), (1.2,)):
        with pytest.raises(ValueError, match="thresholds must be one or more"):
            EmEvaluator(thresholds=thresholds)
    truth = np.ones((2, 2), int)
    for wrong in (np.full((2, 2), 255), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"image 4: the prediction must hold membrane prob"):
            EmEvaluator().update([4], [wrong], [truth])
    with pytest.raises(ValueError, match=r"image 4: .*size \[2, 3\] and the target of \[2, 2\]"):
        EmEvaluator().update([4], [np.zeros((2, 3))], [truth])


@pytest.mark.real_data
def test_real_slice_without_one_membrane_scores_worse_in_the_merge_direction(
    real_data: Path,
) -> None:
    path = real_data / "isbi2012_em" / "train" / "label" / "24.png"
    cells = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
    truth = label_cells(cells)
    assert truth.max() > 50
    assert em_scores(truth, truth) == pytest.approx(dict.fromkeys(SCORE_NAMES, 1.0))
    sizes = np.bincount(truth.ravel())
    sizes[0] = 0
    # A membrane between the largest cell and a neighbour of some size disappears.
    large = int(sizes.argmax())
    around = cv2.dilate((truth == large).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    touched = np.bincount(truth[around], minlength=len(sizes))
    touched[[0, large]] = 0
    neighbour = int(touched.argmax())
    opened = cells.copy()
    near = cv2.dilate((truth == neighbour).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    opened[around & near & (truth == 0)] = True
    merged = label_cells(opened)
    assert merged.max() < truth.max()
    scores = em_scores(merged, truth)
    assert scores is not None
    assert scores["v_rand_merge"] < 0.97
    assert scores["v_info_merge"] < 0.99
    assert scores["v_rand_split"] > 0.999 > scores["v_rand"]
    assert scores["v_info_split"] > 0.999 > scores["v_info"]
    # And the other way round, a wall through the largest cell is a split.
    cut = cells.copy()
    column = int(np.median(np.nonzero(truth == large)[1]))
    cut[:, column - 1 : column + 2] &= ~(truth == large)[:, column - 1 : column + 2]
    split = em_scores(label_cells(cut), truth)
    assert split is not None
    assert split["v_rand_split"] < 0.99 < split["v_rand_merge"]
    assert split["v_info_split"] < 0.999 < split["v_info_merge"]


@pytest.mark.real_data
def test_real_slices_with_thicker_membranes_score_the_same(real_data: Path) -> None:
    evaluator, thick = EmEvaluator(), EmEvaluator()
    for i in (24, 25):
        path = real_data / "isbi2012_em" / "train" / "label" / f"{i}.png"
        target = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        membrane = (target == 0).astype(np.float32)
        evaluator.update([i], [membrane], [target])
        thick.update([i], [cv2.dilate(membrane, np.ones((3, 3)))], [target])
    assert {v for k, v in evaluator.compute().stats.items() if "threshold" not in k} == {1.0}
    # All but the cells that the thicker membranes close or cut.
    assert thick.compute().stats["v_rand"] > 0.98
