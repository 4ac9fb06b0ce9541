"""Comparisons of two models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from instseg.evaluation.bootstrap import draw_weights
from instseg.evaluation.compare import Comparison, compare_records
from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.results import check_results
from instseg.evaluation.scores import BootstrapOptions

from .test_backends import random_sets
from .test_bootstrap import replicates_of

BOTH = ("bbox", "segm")


def compared(seed: int, *, worse: bool = True) -> Comparison:
    """A model and one that loses every third of its detections."""
    truth, found = random_sets(seed)
    prepared = prepare_ground_truth(truth, BOTH)
    a = check_results(found, prepared, BOTH)
    b = [r for i, r in enumerate(a) if i % 3] if worse else a
    return compare_records(prepared, a, b, "segm")


def test_a_model_against_itself() -> None:
    result = compared(4, worse=False)
    assert result.images == []
    for d in (*result.stats.values(), *result.per_category.values()):
        if d.a == -1:
            assert d.difference is None
        else:
            assert d.a == d.b
            assert d.difference == 0
            assert d.p_value in (1, None)
    assert result.stats["AP"].p_value == 1


@pytest.mark.parametrize("seed", [4, 8])
def test_differences_are_those_of_the_same_draws(seed: int) -> None:
    truth, found = random_sets(seed)
    result = compared(seed)
    weights = draw_weights(len(truth["images"]), 200, 0)
    a = replicates_of(truth, found, "segm", weights)
    b = replicates_of(truth, [r for i, r in enumerate(found) if i % 3], "segm", weights)
    ap = result.stats["AP"]
    error = np.nanstd(b["AP"] - a["AP"], ddof=1)
    assert ap.difference == pytest.approx(ap.b - ap.a)
    assert ap.low == pytest.approx(max(-1, ap.difference - 1.959964 * error), abs=1e-5)
    assert ap.high == pytest.approx(ap.difference + 1.959964 * error, abs=1e-5)


def test_what_makes_the_difference_comes_first() -> None:
    result = compared(8)
    sizes = [abs(d.difference or 0) for d in result.per_category.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0
    images = [abs(d.difference) for d in result.images]
    assert images == sorted(images, reverse=True)
    assert images[0] > 0
    assert all(d.difference == pytest.approx(d.b - d.a) for d in result.images)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_category_of_one_image_has_no_interval() -> None:
    truth, found = random_sets(8)
    (first, *_) = [a["image_id"] for a in truth["annotations"] if a["category_id"] == 3]
    truth["annotations"] = [
        a for a in truth["annotations"] if a["category_id"] != 3 or a["image_id"] == first
    ]
    prepared = prepare_ground_truth(truth, BOTH)
    checked = check_results(found, prepared, BOTH)
    result = compare_records(prepared, checked, checked[::2], "bbox")
    rare = result.per_category["c3"]
    assert rare.difference is not None
    assert (rare.low, rare.high, rare.p_value) == (None, None, None)


def test_a_comparison_needs_replicates() -> None:
    truth, _ = random_sets(1)
    prepared = prepare_ground_truth(truth, BOTH)
    with pytest.raises(ValueError, match="a comparison needs replicates"):
        compare_records(prepared, [], [], "bbox", options=BootstrapOptions(replicates=0))
