import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from instseg.evaluation.results import (
    ResultsError,
    check_results,
    instances_to_results,
    load_results,
    write_results,
)
from instseg.structures import BitMasks, Instances, RoIMasks

TRUTH = {
    "images": [{"id": 42, "height": 4, "width": 5}, {"id": 43}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [],
}
MASK = np.array([[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8)


def code(*, text: bool = True) -> dict[str, Any]:
    made = coco_mask.encode(np.asfortranarray(MASK))
    return {**made, "counts": made["counts"].decode()} if text else made


def record(**changes: Any) -> dict[str, Any]:
    """A good record with keys replaced, or removed where the value is ``...``."""
    good = {
        "image_id": 42,
        "category_id": 18,
        "bbox": [1.5, 0, 2, 3],
        "score": 0.5,
        "segmentation": code(),
    }
    return {k: v for k, v in (good | changes).items() if v is not ...}


def load(tmp_path: Path, records: Any, *iou_types: str) -> list[dict[str, Any]]:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    return load_results(path, TRUTH, iou_types or ("bbox", "segm"))


def test_good_records_come_back_as_they_are(tmp_path: Path) -> None:
    assert load(tmp_path, [record(), record(image_id=42, score=1)]) == [record(), record(score=1)]
    assert load(tmp_path, []) == []


def test_boxes_come_from_masks_where_there_are_none(tmp_path: Path) -> None:
    (loaded,) = load(tmp_path, [record(bbox=...)])
    assert loaded["bbox"] == [1, 0, 3, 2]
    (loaded,) = load(tmp_path, [record(bbox=...)], "bbox")
    assert loaded["bbox"] == [1, 0, 3, 2]
    assert "segmentation" not in loaded


def test_uncompressed_counts_are_compressed(tmp_path: Path) -> None:
    counts = [5, 1, 2, 2, 3, 1, 6]  # down the columns of MASK
    (loaded,) = load(tmp_path, [record(segmentation={"size": [4, 5], "counts": counts})])
    assert loaded["segmentation"] == code()


def test_boxes_of_an_image_of_unknown_size_can_be_scored(tmp_path: Path) -> None:
    assert load(tmp_path, [record(image_id=43)], "bbox")[0]["image_id"] == 43
    with pytest.raises(ResultsError, match="does not give this image's height"):
        load(tmp_path, [record(image_id=43)], "segm")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (3, "must be an object, got 3"),
        (record(image_id=...), "key 'image_id' is missing"),
        (record(image_id="42"), "key 'image_id' must be an integer, got '42'"),
        (record(image_id=7), "key 'image_id': 7 is not in the ground truth's images"),
        (record(category_id=2), "key 'category_id': 2 is not in the ground truth's categories"),
        (record(score=...), "key 'score' is missing"),
        (record(score=float("nan")), "key 'score' must be a finite number, got nan"),
        (record(score=float("-inf")), "key 'score' must be a finite number"),
        (record(score=True), "key 'score' must be a finite number"),
        (record(bbox=[0, 0, float("nan"), 1]), "key 'bbox' must hold finite numbers"),
        (record(bbox=[0, 0, 3, -1]), "key 'bbox' has a negative width or height"),
        (record(bbox=[0, 0, 3]), r"key 'bbox' must be \[x, y, width, height\]"),
        (record(segmentation=...), "key 'segmentation' is missing"),
        (record(segmentation=[[0, 0, 1, 1, 2, 2]]), "must be a run-length code"),
        (record(segmentation={"size": [5, 4], "counts": "d0"}), r"its size is \[5, 4\]"),
        (record(segmentation={"size": [4, 5], "counts": "ZZ!!"}), "malformed 'counts'"),
    ],
)
def test_defects_name_file_record_and_key(tmp_path: Path, bad: Any, words: str) -> None:
    with pytest.raises(ResultsError, match=f"record 1: .*{words}") as caught:
        load(tmp_path, [record(), bad, record()])
    assert str(caught.value).startswith(str(tmp_path / "results.json") + ": 1 of 3 records")


def test_neither_box_nor_mask(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="keys 'bbox' and 'segmentation' are both missing"):
        load(tmp_path, [record(bbox=..., segmentation=...)], "bbox")


def test_many_defects_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as caught:
        load(tmp_path, [record()] + [record(image_id=1000 + i) for i in range(30)])
    lines = str(caught.value).splitlines()
    assert "30 of 31 records cannot be used:" in lines[0]
    assert lines[1] == "  record 1: key 'image_id': 1000 is not in the ground truth's images"
    assert lines[-1] == "  ... and 25 more"


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([record(), record()])[:-9])
    with pytest.raises(ResultsError, match=r"results\.json: not valid JSON at line 1, column \d+"):
        load_results(path, TRUTH, ("bbox",))


def test_a_file_that_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"results\.json: a COCO result file is a list"):
        load(tmp_path, {"annotations": []})


def test_written_files_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results([record()], path)
    assert load_results(path, TRUTH, ("bbox", "segm")) == [record()]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_results([record()], path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_results([], path)
    assert json.loads(path.read_text()) == [record()]
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results([record(score=float("nan"))], tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def predictions(**changes: Any) -> Instances:
    good: dict[str, Any] = {
        "image_size": (4, 5),
        "boxes": torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.5, 0.25, 3.0, 4.0]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.5, 0.25]),
    }
    return Instances(**(good | changes))


def test_boxes_labels_and_scores_of_instances() -> None:
    assert instances_to_results(42, predictions(), [1, 18]) == [
        {"image_id": 42, "category_id": 18, "bbox": [1, 0, 3, 2], "score": 0.5},
        {"image_id": 42, "category_id": 1, "bbox": [0.5, 0.25, 2.5, 3.75], "score": 0.25},
    ]


def test_pixel_masks_of_instances() -> None:
    masks = BitMasks(torch.from_numpy(np.stack([MASK, 1 - MASK])))
    records = instances_to_results(42, predictions(masks=masks), [1, 18])
    assert records[0]["segmentation"] == code()
    assert np.array_equal(coco_mask.decode(records[1]["segmentation"]), 1 - MASK)
    assert check_results(json.loads(json.dumps(records)), TRUTH, ("bbox", "segm")) == records


def test_roi_masks_of_instances_are_pasted_into_their_boxes() -> None:
    # A 2 x 2 map over a box of 2 x 2 pixels: pixel centres fall on cell centres.
    instances = Instances(
        image_size=(4, 5),
        boxes=torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([1.0]),
        masks=RoIMasks(torch.tensor([[[0.9, 0.1], [0.4, 0.6]]])),
    )
    (made,) = instances_to_results(42, instances, [1])
    expected = np.zeros((4, 5), np.uint8)
    expected[2, 1] = expected[3, 2] = 1
    assert np.array_equal(coco_mask.decode(made["segmentation"]), expected)
    assert isinstance(made["segmentation"]["counts"], str)


def test_no_detections_make_no_records() -> None:
    assert instances_to_results(42, predictions()[:0], [1, 18]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": None}, "image 42: predictions need scores"),
        ({"scores": torch.tensor([0.5, float("nan")])}, "image 42: 1 of 2 predictions"),
        ({"boxes": torch.full((2, 4), float("inf"))}, "image 42: 2 of 2 predictions"),
        ({"boxes": torch.tensor([[1.0, 0, 0, 2], [0, 0, 1, 1]])}, "image 42: .*x2 < x1"),
        ({"labels": torch.tensor([0, 2])}, "image 42: labels 0 to 2, but .* 2 categories"),
        ({"labels": torch.tensor([0, -1])}, "image 42: labels -1 to 0"),
    ],
)
def test_predictions_that_cannot_be_scored(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        instances_to_results(42, predictions(**changes), [1, 18])
