"""Result files of other systems that cannot be scored: the file and the record are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instseg.cli import evaluate

from .tiny import refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 999}, ["record 1: key 'image_id': 999 is not in the ground truth's images"]),
        ({"category_id": 99}, ["record 1: key 'category_id': 99 is not in the ground truth's cat"]),
        ({"score": float("nan")}, ["record 1: key 'score' must be a finite number, got nan"]),
        ({"score": None}, ["record 1: key 'score' must be a finite number, got None"]),
        ({"bbox": [1, 2, 3]}, ["record 1: key 'bbox' must be [x, y, width, height]"]),
        ({"bbox": [1, 2, -3, 4]}, ["record 1: key 'bbox' has a negative width or height"]),
        (
            {"segmentation": {"size": [32, 32], "counts": [1024]}},
            ["record 1: key 'segmentation': its size is [32, 32]", "[64, 64]"],
        ),
    ],
)
def test_records_that_cannot_be_scored(
    shapes: Path,
    tmp_path: Path,
    change: dict[str, Any],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    mask = {"size": [64, 64], "counts": [0, 4096]}
    good = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 3, 4],
        "score": 0.5,
        "segmentation": mask,
    }
    results = tmp_path / "dt.json"
    results.write_text(json.dumps([good, good | change, good]))
    argv = ["--gt", str(shapes / "val" / "annotations.json"), "--dt", str(results)]
    refused(evaluate.main, argv, capsys, f"{results}: 1 of 3 records cannot be used:", *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image_id": 1, "sc', ["not valid JSON at line 1, column", "cut short"]),
        ('{"annotations": []}', ["a COCO result file is a list of detections"]),
        (
            '[[1, 2], "x"]',
            ["2 of 2 records cannot be used", "record 1: must be an object, got 'x'"],
        ),
        (None, ["dt.json"]),
    ],
)
def test_files_that_are_no_results(
    shapes: Path,
    tmp_path: Path,
    text: str | None,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "dt.json"
    if text is not None:
        results.write_text(text)
    argv = ["--gt", str(shapes / "val" / "annotations.json"), "--dt", str(results)]
    refused(evaluate.main, argv, capsys, str(results), *words)


def test_ground_truth_that_cannot_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, results = tmp_path / "gt.json", tmp_path / "dt.json"
    truth.write_text('{"images": []}')
    results.write_text("[]")
    argv = ["--gt", str(truth), "--dt", str(results)]
    refused(evaluate.main, argv, capsys, f"{truth}: the key 'annotations' with a list is missing")
