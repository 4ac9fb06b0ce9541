"""Published and hand-worked scores, and the evaluator that models are scored with."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instseg.evaluation.coco import (
    BACKENDS,
    METRIC_NAMES,
    CocoEvaluator,
    evaluate_files,
    evaluate_results,
)
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.results import ResultsError
from instseg.ops import mask_targets, rle
from instseg.structures import BitMasks, Instances, RoIMasks

BOTH = ("bbox", "segm")


def published(text: str, iou_type: str) -> dict[str, str]:
    """The twelve numbers under ``type=...`` of COCO's published file, as printed."""
    section = text.split(f"type={iou_type}\n")[1].split("type=")[0]
    values = re.findall(r"\] = (-?\d\.\d{3})$", section, flags=re.MULTILINE)
    assert len(values) == 12
    return dict(zip(METRIC_NAMES, values, strict=True))


@pytest.mark.real_data
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", BOTH)
def test_the_published_numbers(real_data: Path, backend: str, iou_type: str) -> None:
    gold = real_data / "coco_gold"
    scores = evaluate_files(
        gold / "instances_val2014_100.json",
        gold / f"instances_val2014_fake{iou_type}100_results.json",
        (iou_type,),
        backend,
    )[iou_type]
    expected = published((gold / "val2014_fake_eval_res.txt").read_text(), iou_type)
    assert {name: f"{value:0.3f}" for name, value in scores.stats.items()} == expected
    assert scores.images == 100
    assert scores.detections == 734
    assert len(scores.per_category) == 80


@pytest.mark.real_data
@pytest.mark.parametrize("file", ["fakebbox100", "fakesegm100"])
def test_backends_agree_on_the_published_files(real_data: Path, file: str) -> None:
    gold = real_data / "coco_gold"
    gt = gold / "instances_val2014_100.json"
    dt = gold / f"instances_val2014_{file}_results.json"
    own, fast, reference = (evaluate_files(gt, dt, None, backend) for backend in BACKENDS)
    assert tuple(fast) == (BOTH if file == "fakesegm100" else ("bbox",))
    for iou_type, expected in reference.items():
        for scores in (own[iou_type], fast[iou_type]):
            assert scores.stats == pytest.approx(expected.stats, abs=1e-12)
            for name, figures in scores.per_category.items():
                assert figures == pytest.approx(expected.per_category[name], abs=1e-12)


def one_object(**changes: Any) -> dict[str, Any]:
    """A square of 100 pixels in one image of two."""
    annotation = {
        "id": 0,
        "image_id": 5,
        "category_id": 1,
        "bbox": [10, 10, 10, 10],
        "segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]],
        "area": 100,
        "iscrowd": 0,
    }
    return {
        "images": [{"id": i, "height": 40, "width": 50} for i in (5, 6)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [annotation | changes],
    }


def detection(box: list[float], score: float = 0.9, **changes: Any) -> dict[str, Any]:
    x, y, w, h = box
    polygon = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
    code = rle.from_polygons([polygon], (40, 50))
    good = {"image_id": 5, "category_id": 1, "bbox": box, "score": score, "segmentation": code}
    return good | changes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", BOTH)
class TestByHand:
    def ap(self, found: list[dict[str, Any]], iou_type: str, backend: str, **truth: Any) -> float:
        scores = evaluate_results(one_object(**truth), found, (iou_type,), backend)
        return scores[iou_type].stats["AP"]

    def test_a_perfect_detection_of_an_object_whose_id_is_0(
        self, iou_type: str, backend: str
    ) -> None:
        found = [detection([10, 10, 10, 10])]
        scores = evaluate_results(one_object(), found, (iou_type,), backend)[iou_type]
        one = dict.fromkeys(("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100", "ARs"), 1.0)
        none = dict.fromkeys(("APm", "APl", "ARm", "ARl"), -1.0)
        assert scores.stats == pytest.approx(one | none, abs=1e-12)
        assert scores.per_category["cat"] == scores.stats
        assert set(scores.per_category["dog"].values()) == {-1.0}

    def test_an_overlap_of_exactly_06_counts_at_three_thresholds(
        self, iou_type: str, backend: str
    ) -> None:
        found = [detection([10, 10, 10, 6])]  # 60 of 100 pixels: 0.50, 0.55 and 0.60 of ten
        scores = evaluate_results(one_object(), found, (iou_type,), backend)[iou_type].stats
        assert scores["AP"] == pytest.approx(0.3, abs=1e-12)
        assert scores["AP50"] == pytest.approx(1, abs=1e-12)
        assert scores["AP75"] == 0
        assert scores["AR100"] == pytest.approx(0.3, abs=1e-12)

    def test_a_better_scored_miss_halves_precision(self, iou_type: str, backend: str) -> None:
        found = [detection([10, 10, 10, 10], 0.5), detection([30, 20, 10, 10], 0.6)]
        assert self.ap(found, iou_type, backend) == pytest.approx(0.5, abs=1e-12)

    def test_a_second_hit_scored_lower_is_free(self, iou_type: str, backend: str) -> None:
        found = [detection([10, 10, 10, 10], 0.5), detection([10, 10, 10, 10], 0.4)]
        assert self.ap(found, iou_type, backend) == pytest.approx(1, abs=1e-12)

    def test_a_miss_on_an_image_without_objects_counts(self, iou_type: str, backend: str) -> None:
        found = [detection([10, 10, 10, 10], 0.5), detection([0, 0, 9, 9], 0.6, image_id=6)]
        assert self.ap(found, iou_type, backend) == pytest.approx(0.5, abs=1e-12)

    def test_hits_on_a_crowd_do_not_count(self, iou_type: str, backend: str) -> None:
        truth = one_object()
        square = [[30, 10, 50, 10, 50, 40, 30, 40]]
        crowd = {"id": 1, "bbox": [30, 10, 20, 30], "segmentation": square, "iscrowd": 1}
        truth["annotations"].append(truth["annotations"][0] | crowd | {"area": 600})
        found = [detection([10, 10, 10, 10], 0.5), detection([32, 12, 5, 5], 0.6)]
        scores = evaluate_results(truth, found, (iou_type,), backend)
        assert scores[iou_type].stats["AP"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_area_of_a_detected_mask_is_its_own_and_not_its_boxs(backend: str) -> None:
    # An unmatched mask of 1000 pixels in a box of 1200: COCO's scorer would call it medium from
    # its box, and then it would not count among the small ones.
    pixels = np.zeros((40, 50), np.uint8)
    pixels[:25, :40] = 1
    miss = detection([0, 0, 40, 30], 0.95, image_id=6, segmentation=rle.encode(pixels))
    found = [miss, detection([10, 10, 10, 10])]
    scores = evaluate_results(one_object(), found, BOTH, backend)
    assert scores["segm"].stats["APs"] == pytest.approx(0.5, abs=1e-12)
    assert scores["bbox"].stats["APs"] == pytest.approx(1, abs=1e-12)


def disc(size: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    return ((xs - center[0]) ** 2 + (ys - center[1]) ** 2 <= radius**2).astype(np.uint8)


SIZE = (120, 150)
DISCS = {
    8: [disc(SIZE, (50, 60), 45), disc(SIZE, (110, 50), 30)],
    9: [disc(SIZE, (75, 60), 50)],
    10: [],
}
LABELS = {8: [1, 0], 9: [0], 10: []}
CATEGORY_IDS = [2, 30]


def disc_truth() -> dict[str, Any]:
    annotations = []
    for image_id, masks in DISCS.items():
        for mask, label in zip(masks, LABELS[image_id], strict=True):
            code = rle.encode(mask)
            x1, y1, x2, y2 = rle.to_box(code)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": code,
                    "area": rle.area(code),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in DISCS],
        "categories": [{"id": 30, "name": "moon"}, {"id": 2, "name": "sun"}],
        "annotations": annotations,
    }


def disc_predictions(image_id: int, *, roi_masks: bool = False) -> Instances:
    masks = np.array(DISCS[image_id], np.uint8).reshape(-1, *SIZE)
    boxes = torch.tensor([rle.to_box(rle.encode(m)) for m in masks]).reshape(-1, 4)
    bits = BitMasks(torch.from_numpy(masks))
    n = len(masks)
    return Instances(
        image_size=SIZE,
        boxes=boxes,
        labels=torch.tensor(LABELS[image_id], dtype=torch.int64),
        scores=torch.linspace(0.9, 0.4, n),
        masks=RoIMasks(mask_targets(bits, torch.arange(n), boxes, 28)) if roi_masks else bits,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("roi_masks", [False, True])
def test_ground_truth_as_predictions_scores_1(backend: str, roi_masks: bool) -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, backend=backend)
    for image_id in DISCS:
        evaluator.update([image_id], [disc_predictions(image_id, roi_masks=roi_masks)])
    scores = evaluator.compute()
    assert tuple(scores) == BOTH
    for iou_type, score in scores.items():
        assert score.stats["AP"] == pytest.approx(1, abs=1e-12)
        assert score.iou_type == iou_type
        assert score.images == 3
        assert score.detections == 3
        assert list(score.per_category) == ["sun", "moon"]  # in order of category id


def test_images_without_predictions_count_unless_left_out() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS)
    evaluator.update([8, 10], [disc_predictions(8), disc_predictions(10)])
    scores = evaluator.compute()["segm"]
    assert scores.per_category["sun"]["AR100"] == 0.5
    assert scores.images == 3
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, image_ids=[10, 8])
    evaluator.update([8], [disc_predictions(8)])
    scores = evaluator.compute()["segm"]
    assert scores.stats["AR100"] == 1
    assert scores.images == 2


def test_an_image_seen_twice_counts_once_and_the_first_time() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, keep_results=True)
    evaluator.update([9, 9], [disc_predictions(9), disc_predictions(9)[:0]])
    once = evaluator.results()
    assert len(once) == 1
    evaluator.update([9, 8], [disc_predictions(9), disc_predictions(8)])
    assert [r["image_id"] for r in evaluator.results()] == [8, 8, 9]
    assert evaluator.results()[2:] == once


def test_reset_forgets_everything() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, keep_results=True)
    evaluator.update([9], [disc_predictions(9)])
    evaluator.reset()
    assert evaluator.results() == []
    assert evaluator.compute()["bbox"].stats["AP"] == 0


def test_boxes_alone_need_no_masks() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, iou_types=("bbox",))
    predictions = disc_predictions(9)
    predictions.masks = None
    evaluator.update([9], [predictions])
    # One of two suns, and not the moon: (1/2 + 0) / 2.
    assert evaluator.compute()["bbox"].stats["AR1"] == 0.25


def test_updates_that_cannot_be_scored() -> None:
    evaluator = CocoEvaluator(disc_truth(), CATEGORY_IDS, image_ids=[8, 9], keep_results=True)
    predictions = disc_predictions(9)
    with pytest.raises(ValueError, match="image id 11 is not among the images"):
        evaluator.update([11], [predictions])
    with pytest.raises(ValueError, match="image id 10 is not among the images"):
        evaluator.update([10], [disc_predictions(10)])
    with pytest.raises(ValueError, match="2 image ids but 1 predictions"):
        evaluator.update([8, 9], [predictions])
    with pytest.raises(ValueError, match=r"image 9: .*\(60, 75\), the ground truth says \(120"):
        evaluator.update([9], [Instances.empty((60, 75))])
    predictions.masks = None
    with pytest.raises(ValueError, match="image 9: predictions have no masks"):
        evaluator.update([9], [predictions])
    assert evaluator.results() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"category_ids": [2, 31]}, r"category ids \[31\] are not in the ground truth"),
        ({"image_ids": [8, 77]}, r"image ids \[77\] are not in the ground truth"),
        ({"iou_types": ("mask",)}, "iou_types must be some of"),
        ({"iou_types": ()}, "iou_types must be some of"),
        ({"backend": "coco"}, "backend must be one of .*, got 'coco'"),
    ],
)
def test_evaluators_that_cannot_be_made(changes: dict[str, Any], words: str) -> None:
    arguments = {"ground_truth": disc_truth(), "category_ids": CATEGORY_IDS} | changes
    with pytest.raises(ValueError, match=words):
        CocoEvaluator(**arguments)


def test_masks_of_a_box_only_set_are_refused() -> None:
    truth = one_object()
    del truth["annotations"][0]["segmentation"]
    with pytest.raises(GroundTruthError, match="no annotation has a segmentation"):
        CocoEvaluator(truth, [1, 4])
    assert CocoEvaluator(truth, [1, 4], iou_types=("bbox",)).compute()["bbox"].images == 2


def test_results_of_unknown_images_are_refused() -> None:
    with pytest.raises(ResultsError, match=r"results: 1 of 1 .*\n  record 0: key 'image_id': 7"):
        evaluate_results(one_object(), [detection([1, 1, 2, 2], image_id=7)])


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    code = found["segmentation"]
    return found | {"segmentation": {**code, "counts": code["counts"].decode()}}


def test_files_say_what_they_can_be_scored_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = one_object()
    del truth["annotations"][0]["area"]
    gt = write(tmp_path / "gt.json", truth)
    both = [as_json(detection([10, 10, 10, 10]))]
    boxes = [{k: v for k, v in both[0].items() if k != "segmentation"}]
    with caplog.at_level(logging.WARNING):
        assert tuple(evaluate_files(gt, write(tmp_path / "dt.json", both))) == BOTH
    assert len(caplog.records) == 1
    assert "gt.json: filled in the missing 'area' of 1" in caplog.text
    assert tuple(evaluate_files(gt, write(tmp_path / "dt.json", []))) == BOTH
    dt = write(tmp_path / "dt.json", boxes)
    assert tuple(evaluate_files(gt, dt)) == ("bbox",)
    with pytest.raises(ResultsError, match=r"dt\.json: .*\n  record 0: key 'segmentation'"):
        evaluate_files(gt, dt, BOTH)
    truth["annotations"][0]["segmentation"] = []
    write(gt, truth)
    assert tuple(evaluate_files(gt, write(tmp_path / "dt.json", both))) == ("bbox",)


def test_files_given_the_wrong_way_round(tmp_path: Path) -> None:
    gt, dt = write(tmp_path / "gt.json", one_object()), write(tmp_path / "dt.json", [])
    with pytest.raises(ResultsError, match=r"gt\.json: a COCO result file is a list"):
        evaluate_files(gt, gt)
    with pytest.raises(GroundTruthError, match=r"dt\.json: .* no COCO annotation file"):
        evaluate_files(dt, dt)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        evaluate_files(gt, tmp_path / "none.json")
