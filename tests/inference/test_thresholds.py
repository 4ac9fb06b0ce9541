"""Thresholds: chosen by search over all of them, and adapted by definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instseg.inference.thresholds import AdaptiveThreshold, FixedThreshold, ThresholdChooser
from instseg.structures import SemanticMap


def binary(foreground: np.ndarray) -> SemanticMap:
    p = torch.from_numpy(np.asarray(foreground, dtype=np.float32))
    return SemanticMap.exclusive(torch.stack([1 - p, p]))


def truth(labels: np.ndarray) -> SemanticMap:
    return SemanticMap(torch.from_numpy(np.asarray(labels, dtype=np.uint8)))


SCORES = np.array([[0.875, 0.5, 0.75], [0.25, 0.0, 0.625]])
TRUTH = np.array([[1, 1, 0], [1, 0, 0]])


def test_by_hand() -> None:
    """All scores but 0 reach 0.125 and 0.25: 3 hits, 2 false: F1 is 6 / 8, Jaccard 3 / 5."""
    chooser = ThresholdChooser("f1", bins=8)
    chooser.update(["a"], [binary(SCORES)], [truth(TRUTH)])
    assert chooser.scores()[0].stats["f1"] == 0.75
    assert chooser.thresholds() == [0.125]  # the lower middle of 0.125 and 0.25
    chooser = ThresholdChooser("jaccard", bins=8)
    chooser.update(["a"], [binary(SCORES)], [truth(TRUTH)])
    assert chooser.scores()[0].stats["jaccard"] == 0.6
    assert FixedThreshold(chooser.thresholds())(binary(SCORES)).labels.tolist() == [
        [1, 1, 1],
        [1, 0, 1],
    ]


def criteria(present: np.ndarray, real: np.ndarray) -> dict[str, float]:
    tp, fp = (present & real).sum(), (present & ~real).sum()
    fn, tn = (~present & real).sum(), (~present & ~real).sum()
    return {
        "youden": tp / (tp + fn) - fp / (fp + tn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "jaccard": tp / (tp + fp + fn),
    }


@pytest.mark.parametrize("criterion", ["youden", "f1", "jaccard"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_no_threshold_is_better(criterion: str, multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    real = rng.random((3, 2, 20, 30)) < [[[[0.2]], [[0.6]]]]
    probability = (real * 0.3 + 0.7 * rng.random(real.shape)).astype(np.float32)
    labels = real.astype(np.uint8)
    labels[:, :, :2] = 255
    chooser = ThresholdChooser(criterion, bins=64)
    for i in range(3):
        if multi_label:
            predicted = SemanticMap.multi_label(torch.from_numpy(probability[i]))
            chooser.update([i], [predicted], [truth(labels[i])])
        else:
            chooser.update([i], [binary(probability[i, 0])], [truth(labels[i, 0])])
    found = chooser.thresholds()
    assert len(found) == (2 if multi_label else 1)
    for k, threshold in enumerate(found):
        scores, true = probability[:, k, 2:], real[:, k, 2:]
        best = max(criteria(scores >= t / 64, true)[criterion] for t in range(65))
        assert criteria(scores >= threshold, true)[criterion] == pytest.approx(best)
        # The labels follow the same rule: a score that equals the threshold is in.
        if multi_label:
            relabelled = [
                FixedThreshold(found)(SemanticMap.multi_label(torch.from_numpy(p))).labels[k, 2:]
                for p in probability
            ]
            present = np.stack([r.numpy() for r in relabelled]).astype(bool)
            assert criteria(present, true)[criterion] == pytest.approx(best)


def test_processes_merge_and_images_count_once() -> None:
    maps = [binary(np.random.default_rng(i).random((5, 6))) for i in range(4)]
    truths = [truth(np.random.default_rng(9 + i).random((5, 6)) < 0.4) for i in range(4)]
    everything = ThresholdChooser()
    everything.update(range(4), maps, truths)
    first, second, idle = ThresholdChooser(), ThresholdChooser(), ThresholdChooser()
    first.update([0, 1, 2], maps[:3], truths[:3])
    second.update([2, 3], maps[2:], truths[2:])
    idle.merge(first)
    idle.merge(second)
    idle.merge(ThresholdChooser())
    assert idle.scores() == everything.scores()
    assert idle.scores()[0].images == 4
    with pytest.raises(ValueError, match=r"equal settings merge: f1 of 1024 .* youden of 1024"):
        first.merge(ThresholdChooser("youden"))
    other = ThresholdChooser()
    other.update([0], [SemanticMap.multi_label(torch.rand(2, 5, 6))], [truth(np.ones((2, 5, 6)))])
    with pytest.raises(ValueError, match="1 foreground classes here, 2 there"):
        first.merge(other)


def test_nothing_to_choose_from() -> None:
    chooser = ThresholdChooser("jaccard")
    with pytest.raises(ValueError, match="no threshold can be chosen by jaccard: no images given"):
        chooser.thresholds()
    labels = np.zeros((2, 3, 3))
    labels[0] = 1
    chooser.update([0], [SemanticMap.multi_label(torch.rand(2, 3, 3))], [truth(labels)])
    with pytest.raises(ValueError, match=r"the truth lacks pixels of labels \[1\]"):
        chooser.thresholds()


def test_maps_that_cannot_be_used() -> None:
    chooser = ThresholdChooser()
    with pytest.raises(ValueError, match="criterion must be one of youden, f1, jaccard, got 'iou'"):
        ThresholdChooser("iou")
    with pytest.raises(ValueError, match="bins must be a power of two"):
        ThresholdChooser(bins=1000)
    with pytest.raises(ValueError, match="1 image ids, 1 predictions and 0 targets"):
        chooser.update([0], [binary(SCORES)], [])
    with pytest.raises(ValueError, match="no scores"):
        chooser.update([0], [truth(TRUTH)], [truth(TRUTH)])
    three = SemanticMap.exclusive(torch.rand(3, 2, 3))
    with pytest.raises(ValueError, match="3 exclusive classes"):
        chooser.update([0], [three], [truth(TRUTH)])
    with pytest.raises(ValueError, match="image 'x': 1 foreground classes in the prediction, 2"):
        chooser.update(["x"], [binary(SCORES)], [truth(np.ones((2, 2, 3)))])
    with pytest.raises(ValueError, match=r"image 'y': .*0, 1 or the ignore_label 255"):
        chooser.update(["y"], [binary(SCORES)], [truth(TRUTH * 2)])


def test_fixed_thresholds() -> None:
    scores = torch.tensor([[[0.25, 0.5]], [[0.25, 0.5]]])
    semantic = SemanticMap.multi_label(scores)
    found = FixedThreshold([0.25, 0.375])(semantic)
    assert found.labels.tolist() == [[[1, 1]], [[0, 1]]]
    assert found.labels.dtype == torch.uint8
    assert found.scores is semantic.scores
    assert semantic.labels.tolist() == [[[0, 1]], [[0, 1]]]  # the given map is left alone
    assert FixedThreshold([0.75])(binary([[0.75, 0.625]])).labels.tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="1 thresholds for 2 foreground classes"):
        FixedThreshold([0.5])(semantic)
    for wrong in ([], [1.5]):
        with pytest.raises(ValueError, match=r"thresholds must be in 0\.\.1"):
            FixedThreshold(wrong)


def test_otsu_parts_where_the_variance_between_is_greatest() -> None:
    rng = np.random.default_rng(0)
    p = np.where(rng.random((30, 40)) < 0.3, rng.uniform(0.5, 0.7, (30, 40)), 0)
    p = np.where(p == 0, rng.uniform(0.2, 0.4, (30, 40)), p).astype(np.float32)
    found = AdaptiveThreshold("otsu")(binary(p)).labels.numpy() == 1

    def between(mask: np.ndarray) -> float:
        share = mask.mean()
        return share * (1 - share) * (p[mask].mean() - p[~mask].mean()) ** 2

    best = max(between(p > t) for t in np.linspace(0.21, 0.69, 200))
    assert between(found) == pytest.approx(best)
    assert np.array_equal(found, p > 0.45)


def test_local_thresholds_follow_the_neighbourhood() -> None:
    """A window of 7 stands for a deviation of 1; the plain sum reaches 4 of it."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.3, 0.7, (15, 20)).astype(np.float32)
    found = AdaptiveThreshold("local", window=7, offset=0.02)(binary(p)).labels.numpy()
    reach = np.arange(-4, 5)
    kernel = np.exp(-(reach**2) / 2)
    kernel /= kernel.sum()
    padded = np.pad(p.astype(np.float64), 4, mode="symmetric")
    for y in range(15):
        for x in range(20):
            mean = (padded[y : y + 9, x : x + 9] * np.outer(kernel, kernel)).sum()
            if abs(p[y, x] - (mean - 0.02)) > 1e-6:
                assert found[y, x] == (p[y, x] > mean - 0.02)


def test_a_faint_object_is_found_beside_a_bright_one() -> None:
    """What no single threshold can: the one's halo scores as much as the other's heart."""
    p = np.full((40, 80), 0.05)
    p[10:30, 5:35] = 0.45
    p[14:26, 10:30] = 0.95
    p[15:25, 60:70] = 0.45
    found = AdaptiveThreshold("local", window=31, bounds=(0.1, 0.9))(binary(p)).labels.numpy()
    assert found[20, 65] == 1
    assert found[20, 20] == 1
    assert found[12, 20] == 0
    assert found[2, 2] == 0


@pytest.mark.parametrize("method", ["local", "otsu"])
def test_bounds_hold_where_there_is_nothing_to_part(method: str) -> None:
    noise = np.random.default_rng(0).uniform(0, 0.1, (30, 30))
    assert AdaptiveThreshold(method)(binary(noise)).labels.sum() == 0
    assert AdaptiveThreshold(method)(binary(1 - noise)).labels.sum() == 900
    assert AdaptiveThreshold(method)(binary(np.zeros((30, 30)))).labels.sum() == 0
    assert AdaptiveThreshold(method)(binary(np.ones((30, 30)))).labels.sum() == 900


def test_each_overlapping_class_by_itself() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(0.3, 0.7, (2, 20, 20)).astype(np.float32)
    for adapt in (AdaptiveThreshold("local", window=9), AdaptiveThreshold("otsu")):
        together = adapt(SemanticMap.multi_label(torch.from_numpy(p)))
        for k in range(2):
            assert torch.equal(together.labels[k], adapt(binary(p[k])).labels)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="method must be one of local, otsu, got 'mean'"):
        AdaptiveThreshold("mean")
    for window in (1, 8):
        with pytest.raises(ValueError, match=f"window must be odd .* got {window}"):
            AdaptiveThreshold(window=window)
    for bounds in ((0.0, 0.5), (0.6, 0.4), (0.5, 1.0)):
        with pytest.raises(ValueError, match="bounds must be ascending between 0 and 1"):
            AdaptiveThreshold(bounds=bounds)
    with pytest.raises(ValueError, match="4 exclusive classes"):
        AdaptiveThreshold()(SemanticMap.exclusive(torch.rand(4, 9, 9)))
