"""Thresholds that follow from the map, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instseg.inference.thresholds import AdaptiveThreshold
from instseg.structures import SemanticMap


def binary(foreground: np.ndarray) -> SemanticMap:
    p = torch.from_numpy(np.asarray(foreground, dtype=np.float32))
    return SemanticMap.exclusive(torch.stack([1 - p, p]))


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


def test_the_given_map_is_left_alone() -> None:
    given = binary(np.random.default_rng(0).random((9, 9)))
    before = given.labels.clone()
    found = AdaptiveThreshold("local", window=5)(given)
    assert found.scores is given.scores
    assert found.labels.dtype == torch.uint8
    assert torch.equal(given.labels, before)
    assert not torch.equal(found.labels, before)


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
    with pytest.raises(ValueError, match="no scores"):
        AdaptiveThreshold()(SemanticMap(torch.zeros(9, 9, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="4 exclusive classes"):
        AdaptiveThreshold()(SemanticMap.exclusive(torch.rand(4, 9, 9)))
