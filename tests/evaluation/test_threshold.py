import json
import pickle

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.threshold import ThresholdEvaluator, ThresholdScores

Array = npt.NDArray[np.float64]


def scored(scores: Array, truth: npt.NDArray[np.int64], bins: int = 1024) -> ThresholdScores:
    evaluator = ThresholdEvaluator(bins=bins)
    evaluator.update([0], [scores], [truth])
    return evaluator.compute()


def auc_by_pairs(positive: Array, negative: Array) -> float:
    """The chance that a foreground pixel scores above a background one; a tie is one half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return float(wins) / (len(positive) * len(negative))


def average_precision_by_steps(positive: Array, negative: Array) -> float:
    total, recall = 0.0, 0.0
    for t in sorted({*positive.tolist(), *negative.tolist()}, reverse=True):
        tp, fp = (positive >= t).sum(), (negative >= t).sum()
        total += (tp / len(positive) - recall) * tp / (tp + fp)
        recall = tp / len(positive)
    return float(total)


def best_by_loop(positive: Array, negative: Array) -> dict[str, float]:
    """The best of each criterion over every distinct cut that a threshold can make."""
    best = {"youden": 0.0, "f1": 0.0, "jaccard": 0.0}
    P, N = len(positive), len(negative)
    for t in {*positive.tolist(), *negative.tolist(), 0.0}:
        tp, fp = int((positive >= t).sum()), int((negative >= t).sum())
        fn = P - tp
        best["youden"] = max(best["youden"], tp / P - fp / N)
        best["f1"] = max(best["f1"], 2 * tp / (2 * tp + fp + fn))
        best["jaccard"] = max(best["jaccard"], tp / (tp + fp + fn))
    return best


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 5, 16, 255]))
def test_exact_for_quantised_scores(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat([0, 1, 255], [14, 10, 6])).reshape(5, 6)
    scores = rng.integers(0, levels + 1, (5, 6)) / levels
    scores[truth == 255] = np.nan  # ignored, whatever it is
    result = scored(scores, truth)
    positive, negative = scores[truth == 1], scores[truth == 0]
    assert (result.positives, result.negatives) == (10, 14)
    assert result.stats["auc"] == pytest.approx(auc_by_pairs(positive, negative), abs=1e-12)
    expected = average_precision_by_steps(positive, negative)
    assert result.stats["average_precision"] == pytest.approx(expected, abs=1e-12)
    for name, value in best_by_loop(positive, negative).items():
        assert result.stats[name] == pytest.approx(value, abs=1e-12)
        at = result.thresholds.index(result.stats[f"{name}_threshold"])
        t = result.thresholds[at]
        tp, fp = (positive >= t).sum(), (negative >= t).sum()
        reached = {
            "youden": tp / 10 - fp / 14,
            "f1": 2 * tp / (tp + fp + 10),
            "jaccard": tp / (fp + 10),
        }
        assert reached[name] == pytest.approx(value, abs=1e-12)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_curves_are_exact_at_every_threshold_for_any_scores(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((9, 9)).astype(dtype)
    scores[0, 0], scores[0, 1], scores[0, 2] = 0, 1, 0.5
    truth = rng.integers(0, 2, (9, 9))
    truth[8] = (0, 1) * 4 + (1,)
    result = scored(scores, truth, bins=16)
    assert result.thresholds == tuple(i / 16 for i in range(17))
    for i, t in enumerate(result.thresholds):
        called = scores.astype(np.float64) >= t
        tp, fp = (called & (truth == 1)).sum(), (called & (truth == 0)).sum()
        assert result.true_positive_rate[i] == pytest.approx(tp / (truth == 1).sum())
        assert result.false_positive_rate[i] == pytest.approx(fp / (truth == 0).sum())
        assert result.precision[i] == pytest.approx(tp / (tp + fp) if tp + fp else 1.0)


def test_hand_worked() -> None:
    result = scored(np.array([[0.2, 0.3, 0.6, 0.8]]), np.array([[0, 1, 0, 1]]), bins=16)
    # Of the four pairs three are in order; precision 1 at recall 1/2, then 2/3 at recall 1.
    assert result.stats["auc"] == 0.75
    assert result.stats["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.stats["f1"] == pytest.approx(0.8)
    assert result.stats["f1_threshold"] == 4 / 16  # the only one between 0.2 and 0.3
    assert result.stats["jaccard"] == pytest.approx(2 / 3)
    assert result.stats["youden"] == 0.5
    # 1/2 between 0.2 and 0.3 and again between 0.6 and 0.8: the lower run counts.
    assert result.stats["youden_threshold"] == 4 / 16
    assert json.loads(json.dumps(result.to_dict()))["stats"] == result.stats


def test_the_middle_of_equally_good_thresholds_is_taken() -> None:
    result = scored(np.array([[0.25, 0.75]]), np.array([[0, 1]]), bins=16)
    # All of (0.25, 0.75] separates: 5/16 .. 12/16.
    assert result.stats["youden"] == result.stats["f1"] == result.stats["jaccard"] == 1.0
    assert result.stats["youden_threshold"] == result.stats["f1_threshold"] == 8 / 16


def test_finer_bins_approach_the_exact_area() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, (20, 20))
    scores = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
    exact = auc_by_pairs(scores[truth == 1], scores[truth == 0])
    errors = [abs(scored(scores, truth, bins).stats["auc"] - exact) for bins in (8, 4096)]
    assert errors[1] < 1e-4 < errors[0]


def test_shards_merge_to_the_whole_and_repeated_images_count_once() -> None:
    rng = np.random.default_rng(2)
    scores, truth = rng.random((4, 8, 8)), rng.integers(0, 2, (4, 8, 8))
    whole = ThresholdEvaluator()
    whole.update(range(4), scores, truth)
    shards = []
    for ids in ([0, 1, 0], [1, 2, 3]):
        shard = ThresholdEvaluator()
        shard.update(ids, scores[ids], truth[ids])
        shards.append(pickle.loads(pickle.dumps(shard)))
    shards[0].merge(shards[1])
    assert shards[0].compute() == whole.compute()
    with pytest.raises(ValueError, match=r"equal settings merge.*1024.*2048"):
        shards[0].merge(ThresholdEvaluator(bins=2048))


def test_memory_is_bounded_by_the_bins() -> None:
    evaluator = ThresholdEvaluator(bins=64)
    rng = np.random.default_rng(0)
    evaluator.update([0], [rng.random((500, 500))], [rng.integers(0, 2, (500, 500))])
    assert len(pickle.dumps(evaluator)) < 64 * 24 + 1000


def test_without_positives_or_negatives_the_figures_are_undefined() -> None:
    half = np.full((2, 2), 0.5)
    assert set(ThresholdEvaluator().compute().stats.values()) == {-1.0}
    assert set(scored(half, np.zeros((2, 2), int)).stats.values()) == {-1.0}
    only = scored(half, np.ones((2, 2), int)).stats
    assert only["auc"] == only["youden"] == only["youden_threshold"] == -1.0
    assert only["average_precision"] == only["f1"] == only["jaccard"] == 1.0
    assert set(scored(half, np.full((2, 2), 255)).stats.values()) == {-1.0}


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([[0.5, np.nan]], [[0, 1]], r"probabilities in \[0, 1\], got values from nan to nan"),
        ([[0.5, 1.5]], [[0, 1]], "got values from 0.5 to 1.5"),
        ([[0.5, -0.1]], [[0, 1]], "got values from -0.1 to 0.5"),
        ([[0.5, 0.5]], [[0, 2]], "target must hold 0, 1 or the ignore_label 255.* from 0 to 2"),
        ([[0.5, 0.5, 0.1]], [[0, 1]], r"size \[1, 3\] and the target of \[1, 2\]"),
        ([[0.5, 0.5]], [[0.0, 1.0]], "target must be a map of integers"),
    ],
)
def test_bad_maps_name_the_image(
    scores: list[list[float]], truth: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"image 'x': .*{message}"):
        ThresholdEvaluator().update(["x"], [np.array(scores)], [np.array(truth)])


def test_bad_arguments() -> None:
    for bins in (0, 1000):
        with pytest.raises(ValueError, match=f"bins must be a power of two.*{bins}"):
            ThresholdEvaluator(bins=bins)
    with pytest.raises(ValueError, match="ignore_label 0 is background or foreground"):
        ThresholdEvaluator(ignore_label=0)
