import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from instseg.evaluation.ground_truth import (
    GroundTruthError,
    load_ground_truth,
    prepare_ground_truth,
)

BOTH = ("bbox", "segm")


def truth() -> dict[str, Any]:
    """Two images, an L-shaped polygon of area 75 in a box of 100, and a crowd of 8 pixels."""
    shape = [[0, 0, 10, 0, 10, 5, 5, 5, 5, 10, 0, 10]]
    return {
        "images": [
            {"id": 3, "height": 20, "width": 30, "file_name": "a.png"},
            {"id": 1, "height": 4, "width": 5, "file_name": "b.png"},
        ],
        "categories": [{"id": 7, "name": "cell"}, {"id": 2, "name": "dirt"}],
        "annotations": [
            {"id": 0, "image_id": 3, "category_id": 7, "bbox": [0, 0, 10, 10], "area": 75.0,
             "iscrowd": 0, "segmentation": shape},
            {"id": 9, "image_id": 1, "category_id": 2, "bbox": [1, 0, 2, 4], "area": 8,
             "iscrowd": 1, "segmentation": {"size": [4, 5], "counts": [4, 8, 8]}},
        ],
    }  # fmt: skip


def test_a_complete_set_passes_silently_and_is_not_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = truth()
    prepared = prepare_ground_truth(given, BOTH)
    assert given == truth()
    assert not caplog.records
    assert [a["id"] for a in prepared["annotations"]] == [1, 2]
    assert [a["area"] for a in prepared["annotations"]] == [75.0, 8]
    assert [a["iscrowd"] for a in prepared["annotations"]] == [0, 1]
    assert prepared["categories"] == given["categories"]
    assert prepare_ground_truth(prepared, BOTH) == prepared


def test_missing_areas_and_crowd_flags_are_filled_in_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = truth()
    for annotation in given["annotations"]:
        del annotation["area"]
    del given["annotations"][0]["iscrowd"]
    given["annotations"].append({"id": 10, "image_id": 3, "category_id": 7, "bbox": [0, 0, 3, 5]})
    with caplog.at_level(logging.WARNING):
        prepared = prepare_ground_truth(given, ("bbox",), source="a.json")
    assert [a["area"] for a in prepared["annotations"]] == [75, 8, 15]
    assert [a["iscrowd"] for a in prepared["annotations"]] == [0, 1, 0]
    assert [r.getMessage() for r in caplog.records] == [
        "a.json: filled in the missing 'area' of 3 and 'iscrowd' of 2 annotations, of 3"
    ]


def test_boxes_alone_need_neither_image_sizes_nor_masks() -> None:
    given = truth()
    given["images"][0] = {"id": 3, "height": None, "width": None}
    for annotation in given["annotations"]:
        annotation["segmentation"] = []
    prepared = prepare_ground_truth(given, ("bbox",))
    assert prepared["images"][0] == {"id": 3}
    assert "segmentation" not in prepared["annotations"][0]


def test_masks_of_a_box_only_set_are_refused() -> None:
    given = truth()
    for annotation in given["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(GroundTruthError, match="no annotation has a segmentation"):
        prepare_ground_truth(given, BOTH)


def change(path: str, value: Any) -> dict[str, Any]:
    """`truth()` with one value replaced, or removed where ``value`` is ``...``."""
    given = truth()
    *parents, last = (int(k) if k.isdigit() else k for k in path.split("."))
    holder: Any = given
    for key in parents:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return given


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("images", ..., "key 'images' with a list is missing"),
        ("annotations", {}, "key 'annotations' with a list is missing"),
        ("images", [], "list 'images' is empty"),
        ("categories", [], "list 'categories' is empty"),
        ("images.0.id", "3", r"images\[0\]: key 'id' must be an integer >= 0, got '3'"),
        ("images.0.id", -3, r"images\[0\]: key 'id' must be"),
        ("images.0.id", 1, r"images\[1\]: the id 1 is used twice"),
        ("images.0.height", ..., "image 3: 'height' and 'width' are needed"),
        ("images.0.height", 0, "image 3: height 0 and width 30 must be positive"),
        ("images.0.height", 2**30, "product below 2"),
        ("categories.0.name", ..., "category 7: key 'name' must be text"),
        ("categories.1.name", "cell", "category 2: the name 'cell' is used twice"),
        ("annotations.1.id", 0, r"annotations\[1\]: the id 0 is used twice"),
        ("annotations.0", None, r"annotations\[0\]: key 'id'"),
        ("annotations.0.image_id", 5, "annotation 0: key 'image_id': 5 is not in 'images'"),
        ("annotations.0.category_id", ..., "annotation 0: key 'category_id' is missing"),
        ("annotations.0.bbox", ..., "annotation 0: key 'bbox' is missing"),
        ("annotations.0.bbox", [0, 0, -1, 2], "annotation 0: key 'bbox' has a negative"),
        ("annotations.0.segmentation", ..., "annotation 0: key 'segmentation' is missing"),
        ("annotations.0.segmentation", [0, 0, 5, 5, 5, 0], "a polygon is not a list of numbers"),
        ("annotations.0.segmentation", "x", "must be polygons or a run-length code"),
        ("annotations.1.segmentation.size", [5, 4], r"annotation 9: .*\[5, 4\]"),
        ("annotations.1.segmentation.counts", [4, 8], "add up to 12 of the image's 20"),
        ("annotations.0.iscrowd", 2, "annotation 0: key 'iscrowd' must be 0 or 1"),
        ("annotations.0.area", "big", "annotation 0: key 'area' must be a finite"),
    ],
)
def test_defects_name_the_record_and_the_key(path: str, value: Any, words: str) -> None:
    with pytest.raises(GroundTruthError, match=words) as caught:
        prepare_ground_truth(change(path, value), BOTH, source="val.json")
    assert str(caught.value).startswith("val.json: ")


def test_masks_alone_need_no_boxes() -> None:
    given = truth()
    for annotation in given["annotations"]:
        del annotation["bbox"]
    assert len(prepare_ground_truth(given, ("segm",))["annotations"]) == 2


def test_many_defects_are_counted_and_the_first_five_shown() -> None:
    given = truth()
    bad = {**given["annotations"][0], "image_id": 99}
    given["annotations"] += [{**deepcopy(bad), "id": 100 + i} for i in range(7)]
    with pytest.raises(GroundTruthError) as caught:
        prepare_ground_truth(given, BOTH)
    lines = str(caught.value).splitlines()
    assert lines[0] == "ground truth: 7 of 9 annotations cannot be used:"
    assert len(lines) == 7
    assert lines[1] == "  annotation 100: key 'image_id': 99 is not in 'images'"
    assert lines[-1] == "  ... and 2 more"


def test_a_file_cut_short_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    text = json.dumps(truth(), indent=1)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(GroundTruthError, match=r"val\.json: not valid JSON at line \d+, column"):
        load_ground_truth(path, BOTH)
    path.write_text(text)
    assert len(load_ground_truth(path, BOTH)["annotations"]) == 2


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xd8\xff", "not UTF-8"), (b"[" * 200_000, "nested too deeply")]
)
def test_files_that_are_no_json(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "val.json"
    path.write_bytes(content)
    with pytest.raises(GroundTruthError, match=words):
        load_ground_truth(path, BOTH)
