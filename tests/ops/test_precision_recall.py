"""Precision and recall tables on every backend, against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from instseg.ops import available_backends, use_backend
from instseg.ops.precision_recall import precision_recall

BACKENDS = [name for name in available_backends() if name != "triton"]


def by_definition(found, ignored, rank, objects, recalls, limits):
    """The highest precision at any recall of at least r, detection by detection."""
    precision = np.zeros((found.shape[1], len(recalls), len(objects), len(limits)))
    recall = np.zeros((found.shape[1], len(objects), len(limits)))
    for t, a, m in np.ndindex(recall.shape):
        if objects[a] == 0:
            precision[t, :, a, m] = recall[t, a, m] = -1
            continue
        true = counted = 0
        curve = [(0.0, 0.0)]
        for n in range(len(found)):
            if rank[n] < limits[m] and not ignored[n, t, a]:
                counted += 1
                true += found[n, t, a]
                curve.append((true / objects[a], true / counted))
        recall[t, a, m] = true / objects[a]
        precision[t, :, a, m] = [
            max((p for reached, p in curve if reached >= r), default=0.0) for r in recalls
        ]
    return precision, recall


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(12))
def test_tables_against_the_definition(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.choice([0, 1, 40]))
    found = rng.random((n, 3, 2)) < 0.5
    columns = (
        found,
        rng.random((n, 3, 2)) < 0.2,
        rng.integers(0, 6, n),
        np.array([0 if seed % 3 == 0 else 25, 40]),
        np.linspace(0, 1, 101),
        np.array([1, 3, 100]),
    )
    with use_backend(backend):
        got = precision_recall(*columns)
    for table, expected in zip(got, by_definition(*columns), strict=True):
        np.testing.assert_allclose(table, expected, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_is_cocos(backend: str) -> None:
    """pycocotools divides by the count plus the spacing of 1, so that one of one is not quite 1."""
    one = np.ones((1, 1, 1), np.bool_)
    with use_backend(backend):
        precision, _ = precision_recall(
            one, ~one, np.array([0]), np.array([1]), np.array([1.0]), np.array([100])
        )
    assert precision.item() == 1 / (1 + np.spacing(1)) < 1
