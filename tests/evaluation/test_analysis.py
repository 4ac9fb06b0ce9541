"""The report's document: complete, plain, and the same numbers as the scores and the reasons."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.evaluation.analysis import analyse, as_one_category
from instseg.evaluation.coco import METRIC_NAMES, score
from instseg.evaluation.ground_truth import load_ground_truth
from instseg.evaluation.params import CocoParams
from instseg.evaluation.reasons import find_reasons
from instseg.evaluation.results import load_results
from instseg.evaluation.scores import BootstrapOptions
from tests.evaluation.reasons.sets import annotation, detection, prepared, random_set

A, B = [10.0, 10.0, 40.0, 40.0], [100.0, 100.0, 60.0, 60.0]
NO_INTERVALS = BootstrapOptions(replicates=0)


def analysis(
    truth: dict[str, Any],
    records: list[dict[str, Any]],
    iou_types: Sequence[str] = ("bbox", "segm"),
    options: BootstrapOptions = NO_INTERVALS,
    params: CocoParams | None = None,
) -> dict[str, Any]:
    scores = score(truth, records, iou_types, "instseg", params, options)
    reasons = {t: find_reasons(truth, records, t) for t in iou_types if t != "boundary"}
    return analyse(
        truth,
        records,
        scores,
        reasons,
        title="a model",
        ground_truth_name="val.json",
        results_name="dt.json",
        options=options,
    )


def test_the_heading() -> None:
    document = analysis(
        *prepared(
            [annotation(1, 1, A), annotation(2, 4, B), annotation(2, 4, A, crowd=1)],
            [detection(1, 1, 0.9, A), detection(1, 9, 0.8, B)],
            images=3,
        )
    )
    created = datetime.strptime(document.pop("created"), "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 120
    versions = document.pop("versions")
    installed = {name: version(name) for name in ("instseg", "hotcoco", "numpy")}
    assert versions == installed | {"torch": str(torch.__version__)}
    assert list(document.pop("iou_types")) == ["bbox", "segm"]
    assert document == {
        "title": "a model",
        "ground_truth": "val.json",
        "results": "dt.json",
        "images": 3,
        "objects": 2,
        "detections": 2,
        "categories": ["cat", "dog", "cow"],  # in order of id, not as they are listed
        "confidence": 0.95,
        "replicates": 0,
    }


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_the_scores(seed: int) -> None:
    truth, records = random_set(seed)
    options = BootstrapOptions(replicates=20)
    document = analysis(truth, records, ("bbox", "segm", "boundary"), options)
    scores = score(truth, records, ("bbox", "segm", "boundary"), "instseg", None, options)
    for iou_type, section in document["iou_types"].items():
        expected = scores[iou_type]
        assert list(section["stats"]) == list(METRIC_NAMES)
        for name, figure in section["stats"].items():
            interval = expected.intervals[name]
            assert figure == {
                "value": expected.stats[name],
                "low": interval.low,
                "high": interval.high,
            }
        assert list(section["per_category"]) == ["cat", "dog", "cow"]
        for name, row in section["per_category"].items():
            assert list(row)[:4] == ["AP", "AP50", "AP75", "AR100"]
            for metric in list(row)[:4]:
                assert row[metric]["value"] == expected.per_category[name][metric]
                assert row[metric]["low"] == expected.category_intervals[name][metric].low
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_reasons_are_all_there(iou_type: str) -> None:
    truth, records = random_set(3)
    section = analysis(truth, records)["iou_types"][iou_type]
    reasons = find_reasons(truth, records, iou_type).to_dict()
    rows = reasons.pop("per_category")
    assert {name: section[name] for name in reasons} == reasons
    for name, row in rows.items():
        assert {k: section["per_category"][name][k] for k in row} == row


def test_without_intervals_the_limits_are_unknown() -> None:
    document = analysis(*prepared([annotation(1, 1, A)], [detection(1, 1, 0.9, A)], images=1))
    section = document["iou_types"]["bbox"]
    assert section["stats"]["AP"] == {"value": pytest.approx(1), "low": None, "high": None}
    assert section["per_category"]["dog"]["AP"] == {"value": -1.0, "low": None, "high": None}


def test_boundary_has_its_figures_alone() -> None:
    truth, records = random_set(1)
    section = analysis(truth, records, ("bbox", "boundary"))["iou_types"]["boundary"]
    assert set(section) == {"stats", "per_category"}
    assert list(section["per_category"]["cat"]) == ["AP", "AP50", "AP75", "AR100"]


def test_other_parameters_have_other_figures() -> None:
    truth, records = random_set(1)
    params = CocoParams(iou_thresholds=(0.5, 0.6), max_detections=(1, 300))
    section = analysis(truth, records, ("bbox",), params=params)["iou_types"]["bbox"]
    assert {"AP50", "AR300"} <= set(section["stats"])
    assert list(section["per_category"]["cat"])[:3] == ["AP", "AP50", "AR300"]


def test_a_class_agnostic_scoring_is_of_one_category() -> None:
    truth, records = prepared(
        [annotation(1, 1, A), annotation(1, 4, B)],
        [detection(1, 9, 0.9, A), detection(1, 1, 0.8, B)],
        images=1,
    )
    params = CocoParams(class_agnostic=True)
    with pytest.raises(ValueError, match=r"bbox: the scores are of the categories \['all'\]"):
        analysis(truth, records, ("bbox",), params=params)
    one, of_one = as_one_category(truth, records)
    document = analysis(one, of_one, ("bbox",), params=params)
    assert document["categories"] == ["all"]
    section = document["iou_types"]["bbox"]
    assert section["stats"]["AP"]["value"] == section["per_category"]["all"]["AP"]["value"]
    assert section["stats"]["AP"]["value"] == pytest.approx(1)
    assert section["per_category"]["all"]["best"]["f1"] == 1
    assert section["confusion"]["matrix"] == [[2, 0], [0, 0]]
    # What was given is not changed.
    assert {a["category_id"] for a in truth["annotations"]} == {1, 4}
    assert {r["category_id"] for r in records} == {1, 9}


@pytest.mark.parametrize("seed", range(20))
def test_one_category_decides_ties_as_a_class_agnostic_scoring(seed: int) -> None:
    truth, records = random_set(seed)
    params = CocoParams(class_agnostic=True)
    own = score(truth, records, ("bbox",), "instseg", params, NO_INTERVALS)["bbox"]
    one = score(*as_one_category(truth, records), ("bbox",), "pycocotools", None, NO_INTERVALS)
    assert one["bbox"].stats == pytest.approx(own.stats, abs=1e-12)


@pytest.mark.real_data
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_published_figures(real_data: Path, iou_type: str) -> None:
    gold = real_data / "coco_gold"
    truth = load_ground_truth(gold / "instances_val2014_100.json", (iou_type,))
    file = gold / f"instances_val2014_fake{iou_type}100_results.json"
    document = analysis(truth, load_results(file, truth, (iou_type,)), (iou_type,))
    text = (gold / "val2014_fake_eval_res.txt").read_text().split(f"type={iou_type}\n")[1]
    published = re.findall(r"\] = (-?\d\.\d{3})$", text, flags=re.MULTILINE)[:12]
    section = document["iou_types"][iou_type]
    assert [f"{figure['value']:0.3f}" for figure in section["stats"].values()] == published
    assert (document["images"], document["detections"]) == (100, 734)
    assert len(document["categories"]) == len(section["per_category"]) == 80
    objects = [row["objects"] for row in section["per_category"].values()]
    assert sum(objects) == document["objects"] == sum(map(sum, section["confusion"]["matrix"][:-1]))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
