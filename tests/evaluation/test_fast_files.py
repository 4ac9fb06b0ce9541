"""The fast reader reads what the careful one reads, and leaves all else to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instseg.evaluation.coco import evaluate_files
from instseg.evaluation.fast_files import read_fast
from instseg.evaluation.ground_truth import GroundTruthError, prepare_ground_truth
from instseg.evaluation.results import ResultsError, check_results
from instseg.evaluation.tables import ScoringData

from .test_backends import random_sets

BOTH = ("bbox", "segm")


def write(folder: Path, truth: Any, found: Any) -> tuple[Path, Path]:
    paths = folder / "gt.json", folder / "dt.json"
    for path, value in zip(paths, (truth, found), strict=True):
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return paths


def assert_equal(first: ScoringData, second: ScoringData) -> None:
    assert first.iou_type == second.iou_type
    assert first.category_names == second.category_names
    for a, b in (
        (first.truth, second.truth),
        (first.detections, second.detections),
        (first.vocabulary, second.vocabulary),
    ):
        assert vars(a).keys() == vars(b).keys()
        for name, column in vars(a).items():
            other = getattr(b, name)
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(column, other)
                assert column.dtype == other.dtype, name
            elif column is not None:
                for x, y in zip(column, other, strict=True):
                    assert (list(x["size"]), x["counts"]) == (list(y["size"]), y["counts"])
            else:
                assert other is None


@pytest.mark.parametrize("seed", range(20))
def test_both_readers_read_the_same(tmp_path: Path, seed: int) -> None:
    truth, found = random_sets(seed)
    data = read_fast(*write(tmp_path, truth, found), None)
    if not found:
        assert data is None
        return
    assert data is not None
    assert [d.iou_type for d in data] == list(BOTH)
    prepared = prepare_ground_truth(truth, BOTH)
    checked = check_results(found, prepared, BOTH)
    for own in data:
        assert_equal(own, ScoringData.of(prepared, checked, own.iou_type))


@pytest.mark.real_data
@pytest.mark.parametrize("kind", BOTH)
def test_published_files(real_data: Path, kind: str) -> None:
    gold = real_data / "coco_gold"
    gt = gold / "instances_val2014_100.json"
    dt = gold / f"instances_val2014_fake{kind}100_results.json"
    data = read_fast(gt, dt, (kind,))
    assert data is not None
    prepared = prepare_ground_truth(json.loads(gt.read_text()), (kind,))
    checked = check_results(json.loads(dt.read_text()), prepared, (kind,))
    assert_equal(data[0], ScoringData.of(prepared, checked, kind))


Change = Callable[[dict[str, Any], list[dict[str, Any]]], Any]
DEFECTS: dict[str, tuple[Change, str]] = {
    "unknown image": (lambda t, f: f[1].update(image_id=999), "record 1: key 'image_id': 999"),
    "unknown category": (lambda t, f: f[1].update(category_id=9), "record 1: key 'category_id'"),
    "text for an id": (lambda t, f: f[2].update(image_id="1"), "record 2: key 'image_id' must"),
    "no score": (lambda t, f: f[0].pop("score"), "record 0: key 'score' is missing"),
    "NaN score": (lambda t, f: f[3].update(score=float("nan")), "record 3: key 'score' must be"),
    "infinite score": (lambda t, f: f[3].update(score=float("inf")), "record 3: key 'score' must"),
    "negative side": (lambda t, f: f[1].update(bbox=[1, 1, -2, 3]), "record 1: .*negative"),
    "three numbers": (lambda t, f: f[1].update(bbox=[1, 1, 2]), "record 1: key 'bbox' must be"),
    "another size": (
        lambda t, f: f[1]["segmentation"].update(size=[5, 5]),
        r"record 1: .*size is \[5, 5\]",
    ),
    "cut counts": (
        lambda t, f: f[1]["segmentation"].update(counts=f[1]["segmentation"]["counts"][:-2]),
        "record 1: .*counts",
    ),
    "strange counts": (
        lambda t, f: f[1]["segmentation"].update(counts="\x01\x02"),
        "record 1: .*malformed 'counts'",
    ),
    "no counts": (lambda t, f: f[1]["segmentation"].pop("counts"), "record 1: .*keys 'size' and"),
    "object box": (lambda t, f: t["annotations"][0].update(bbox=[0, 0, -1, 2]), "negative width"),
    "object image": (lambda t, f: t["annotations"][0].update(image_id=999), "key 'image_id': 999"),
    "object area": (lambda t, f: t["annotations"][0].update(area=-3), "key 'area' must be"),
    "object crowd": (lambda t, f: t["annotations"][0].update(iscrowd=2), "key 'iscrowd' must be"),
    "object mask": (
        lambda t, f: t["annotations"][0].update(segmentation=[[1, 2, 3]]),
        "3 numbers are not a polygon",
    ),
    "same id": (
        lambda t, f: t["annotations"][1].update(id=t["annotations"][0]["id"]),
        "used twice",
    ),
    "huge id": (lambda t, f: f[1].update(image_id=2**63), "record 1: key 'image_id' must be"),
    "empty mask": (lambda t, f: t["annotations"][0].update(segmentation=[]), "missing or empty"),
    "flat image": (lambda t, f: t["images"][0].update(height=0), "must be positive integers"),
    "same image": (lambda t, f: t["images"].append(t["images"][0]), "used twice"),
    "same name": (lambda t, f: t["categories"][1].update(name="c11"), "'c11' is used twice"),
    "no size": (lambda t, f: t["images"][0].pop("height"), "'height' and 'width' are needed"),
    "no categories": (lambda t, f: t.pop("categories"), "the key 'categories' with a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_get_the_careful_readers_message(tmp_path: Path, name: str) -> None:
    change, words = DEFECTS[name]
    truth, found = copy.deepcopy(random_sets(4))
    change(truth, found)
    gt, dt = write(tmp_path, truth, found)
    assert read_fast(gt, dt, BOTH) is None
    file = "dt" if words.startswith("record") else "gt"
    with pytest.raises((GroundTruthError, ResultsError), match=rf"(?s){file}\.json.*{words}"):
        evaluate_files(gt, dt, BOTH)


@pytest.mark.parametrize("which", [0, 1])
def test_files_cut_short(tmp_path: Path, which: int) -> None:
    texts = [json.dumps(value) for value in random_sets(4)]
    texts[which] = texts[which][:-20]
    gt, dt = write(tmp_path, *texts)
    assert read_fast(gt, dt, BOTH) is None
    with pytest.raises((GroundTruthError, ResultsError), match="cut short"):
        evaluate_files(gt, dt, BOTH)


def test_lists_of_nothing_however_written(tmp_path: Path) -> None:
    truth, found = copy.deepcopy(random_sets(4))
    truth["annotations"][0]["segmentation"] = []
    text = json.dumps(truth).replace('"segmentation": []', '"segmentation": [ ]')
    gt, dt = write(tmp_path, text, found)
    assert read_fast(gt, dt, BOTH) is None
    with pytest.raises(GroundTruthError, match="missing or empty"):
        evaluate_files(gt, dt, BOTH)


def test_ids_beyond_what_floating_numbers_hold(tmp_path: Path) -> None:
    truth, found = copy.deepcopy(random_sets(4))
    expected = evaluate_files(*write(tmp_path, truth, found))
    for record in truth["images"]:
        record["id"] += 2**60
    for record in (*truth["annotations"], *found):
        record["image_id"] += 2**60
    assert evaluate_files(*write(tmp_path, truth, found)) == expected


def test_missing_area_and_iscrowd_are_filled_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, found = copy.deepcopy(random_sets(4))
    gt, dt = write(tmp_path, truth, found)
    complete = evaluate_files(gt, dt)
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            del annotation["iscrowd"], annotation["area"]
    gt, dt = write(tmp_path, truth, found)
    assert read_fast(gt, dt, None) is None
    assert evaluate_files(gt, dt)["segm"].stats == complete["segm"].stats
    assert len(caplog.records) == 1
    assert "filled in the missing 'area' of" in caplog.text
