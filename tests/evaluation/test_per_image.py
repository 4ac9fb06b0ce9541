"""Single images and slices against scorings of those images alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from instseg.evaluation.coco import CocoEvaluator, evaluate_results, match_records
from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams
from instseg.evaluation.per_image import average_precision_of_images, score_slices
from instseg.evaluation.results import check_results
from instseg.evaluation.scores import BootstrapOptions
from instseg.evaluation.slices import SliceError
from instseg.evaluation.tables import Vocabulary

from .test_backends import Sets, random_sets

NONE = BootstrapOptions(replicates=0)


def only(sets: Sets, ids: set[int]) -> Sets:
    truth, found = sets
    return {
        "images": [i for i in truth["images"] if i["id"] in ids],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        "categories": truth["categories"],
    }, [f for f in found if f["image_id"] in ids]


def matched(sets: Sets) -> tuple[Matches, Vocabulary]:
    truth = prepare_ground_truth(sets[0], ("bbox",))
    found = check_results(sets[1], truth, ("bbox",))
    return match_records(truth, found, "bbox", CocoParams()), Vocabulary.of(truth)


@pytest.mark.parametrize("seed", range(25))
def test_images_score_as_data_sets_of_their_own(seed: int) -> None:
    sets = random_sets(seed)
    matches, vocabulary = matched(sets)
    got = average_precision_of_images(matches, len(vocabulary.images))
    for position, image_id in enumerate(vocabulary.images.tolist()):
        alone = only(sets, {image_id})
        expected = evaluate_results(*alone, ("bbox",), "pycocotools", intervals=NONE)["bbox"]
        if expected.stats["AP"] == -1:
            assert math.isnan(got[position])
        else:
            assert got[position] == pytest.approx(expected.stats["AP"], abs=1e-9)


def test_slices_score_as_data_sets_of_their_own() -> None:
    sets = random_sets(3)
    matches, vocabulary = matched(sets)
    ids = vocabulary.images.tolist()
    slices = {"first": ids[:2], "rest": set(ids[2:]), "all": ids}
    whole = evaluate_results(*sets, ("bbox",))["bbox"]
    got = score_slices(matches, whole, vocabulary, slices, BootstrapOptions())
    assert list(got) == list(slices)
    assert got["all"].intervals == whole.intervals
    for name, chosen in slices.items():
        alone = only(sets, set(chosen))
        expected = evaluate_results(*alone, ("bbox",))["bbox"]
        assert got[name].stats == pytest.approx(expected.stats, abs=1e-12)
        assert got[name].images == len(chosen)
        for figure, interval in expected.intervals.items():
            assert got[name].intervals[figure].low == pytest.approx(interval.low, abs=1e-12)


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ({"night": []}, "the slice 'night' is empty"),
        ({"fog": [777]}, r"the slice 'fog' has unknown image ids \[777\]"),
    ],
)
def test_slices_of_nothing_and_of_unknown_images(slices: dict[str, list[int]], words: str) -> None:
    sets = random_sets(3)
    matches, vocabulary = matched(sets)
    whole = evaluate_results(*sets, ("bbox",), intervals=NONE)["bbox"]
    with pytest.raises(SliceError, match=words):
        score_slices(matches, whole, vocabulary, slices, NONE)


def test_no_objects_at_all() -> None:
    truth, found = random_sets(3)
    matches, vocabulary = matched(({**truth, "annotations": []}, found))
    assert np.isnan(average_precision_of_images(matches, len(vocabulary.images))).all()
    assert len(CocoEvaluator(truth, []).compute()["bbox"].stats) == 12
