"""Shards, repeats and pickles give the scores of one evaluator that saw everything once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from instseg.evaluation.coco import CocoEvaluator
from instseg.evaluation.params import CocoParams
from instseg.evaluation.scores import CocoScores
from instseg.structures import Instances

from .test_backends import random_sets

CATEGORIES = [0, 3, 7, 11]


def predictions(seed: int) -> tuple[dict[str, Any], dict[int, Instances]]:
    """A data set and the boxes that a model finds on each image."""
    truth, found = random_sets(seed)
    by_image = {}
    for image in truth["images"]:
        own = [f for f in found if f["image_id"] == image["id"]]
        boxes = torch.tensor([f["bbox"] for f in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        by_image[image["id"]] = Instances(
            image_size=(image["height"], image["width"]),
            boxes=boxes,
            labels=torch.tensor([CATEGORIES.index(f["category_id"]) for f in own]).long(),
            scores=torch.tensor([f["score"] for f in own], dtype=torch.float32),
        )
    return truth, by_image


def evaluator(truth: dict[str, Any], **changes: Any) -> CocoEvaluator:
    return CocoEvaluator(truth, CATEGORIES, iou_types=("bbox",), **changes)


def scored(truth: dict[str, Any], found: dict[int, Instances], **changes: Any) -> CocoScores:
    own = evaluator(truth, **changes)
    own.update(list(found), list(found.values()))
    return own.compute()["bbox"]


@pytest.mark.parametrize("seed", range(10))
def test_shards_with_a_common_image_merge_to_the_whole(seed: int) -> None:
    truth, found = predictions(seed)
    ids = list(found)
    shards = []
    for part in (ids[::2], [*ids[1::2], ids[0]]):  # a padded sampler repeats the first
        shard = evaluator(truth)
        for image_id in part:
            shard.update([image_id], [found[image_id]])
        shards.append(pickle.loads(pickle.dumps(shard)))
    for first, second in ((0, 1), (1, 0)):
        merged = pickle.loads(pickle.dumps(shards[first]))
        merged.merge(shards[second])
        assert merged.compute()["bbox"] == scored(truth, found)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_backends_that_keep_records_give_the_same(backend: str) -> None:
    truth, found = predictions(2)
    own, other = scored(truth, found), scored(truth, found, backend=backend)
    assert own.stats == pytest.approx(other.stats, abs=1e-12)
    assert own.detections == other.detections


def test_nothing_remains_of_masks_and_boxes() -> None:
    truth, found = predictions(2)
    own = evaluator(truth)
    before = len(pickle.dumps(own))
    own.update(list(found), list(found.values()))
    own.update(list(found), list(found.values()))
    detections = sum(map(len, found.values()))
    assert own.detections == detections
    # Two flags for each of 40 pairs of threshold and area, and 20 bytes.
    assert len(pickle.dumps(own)) - before < 110 * detections + 2000
    with pytest.raises(ValueError, match="make the evaluator with keep_results=True"):
        own.results()


def test_evaluators_of_different_things_do_not_merge() -> None:
    truth, _ = predictions(2)
    with pytest.raises(ValueError, match="same IoU types, parameters"):
        evaluator(truth).merge(evaluator(truth, params=CocoParams(class_agnostic=True)))
    with pytest.raises(ValueError, match="same IoU types, parameters"):
        evaluator(truth).merge(CocoEvaluator(truth, CATEGORIES))
    with pytest.raises(ValueError, match="parameters and backend"):
        evaluator(truth, keep_results=True).merge(evaluator(truth))
    more = truth | {"annotations": truth["annotations"][:-1]}
    with pytest.raises(ValueError, match="made with the same ground truth"):
        evaluator(truth).merge(evaluator(more))
    other, _ = predictions(5)
    with pytest.raises(ValueError, match="made with the same ground truth"):
        evaluator(truth).merge(evaluator(other))


def test_an_update_that_fails_leaves_no_trace() -> None:
    truth, found = predictions(2)
    own = evaluator(truth)
    (first, good), *_ = found.items()
    with pytest.raises(ValueError, match="image id 999 is not among"):
        own.update([first, 999], [good, good])
    assert own.detections == 0
    own.update(list(found), list(found.values()))
    assert own.compute()["bbox"] == scored(truth, found)
