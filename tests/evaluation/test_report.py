import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from instseg.evaluation.bootstrap import Interval
from instseg.evaluation.coco import METRIC_NAMES
from instseg.evaluation.params import CocoParams, metrics_of
from instseg.evaluation.report import category_table, summary_lines, write_scores
from instseg.evaluation.scores import CocoScores


def scores() -> dict[str, CocoScores]:
    stats = {name: (i + 1) / 16 for i, name in enumerate(METRIC_NAMES)}
    made = {}
    for iou_type, factor in (("bbox", 1.0), ("segm", 0.5)):
        own = {name: value * factor for name, value in stats.items()}
        made[iou_type] = CocoScores(
            iou_type=iou_type,
            stats=own | {"APl": -1.0},
            per_category={"cat": own, "[red]": dict.fromkeys(METRIC_NAMES, -1.0)},
            images=7,
            detections=90,
        )
    return made


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_category_table() -> None:
    text = printed(category_table(scores()))
    assert cells(text, "cat")[1:] == [
        "0.062", "0.125", "0.188", "0.562", "0.031", "0.062", "0.094", "0.281",
    ]  # fmt: skip
    assert cells(text, "[red]") == ["[red]"] + ["-"] * 8


def test_lines_are_the_ones_pycocotools_prints(capsys: pytest.CaptureFixture[str]) -> None:
    # summarize() reads means off tables: give it tables that hold one known value each.
    evaluation = COCOeval(iouType="bbox")
    precision, recall = np.full((10, 101, 1, 4, 3), 0.25), np.full((10, 1, 4, 3), 0.5)
    precision[:, :, :, 3], recall[:, :, 3] = -1, -1
    evaluation.eval = {"precision": precision, "recall": recall}
    capsys.readouterr()
    evaluation.summarize()
    stats = dict(zip(METRIC_NAMES, map(float, evaluation.stats), strict=True))
    lines = summary_lines({"bbox": CocoScores("bbox", stats, {}, 1, 1)})
    assert lines[0] == "Evaluate annotation type *bbox*"
    assert lines[1:] == capsys.readouterr().out.splitlines()
    assert lines[1].endswith("maxDets=100 ] = 0.250")
    assert lines[6].endswith("area= large | maxDets=100 ] = -1.000")


def test_intervals_follow_their_figures() -> None:
    intervals = {"AP": Interval(0.25, 0.2, 0.31), "APl": Interval(-1.0, None, None)}
    stats = dict.fromkeys(METRIC_NAMES, 0.25) | {"APl": -1.0}
    lines = summary_lines({"bbox": CocoScores("bbox", stats, {}, 1, 1, intervals=intervals)})
    assert lines[1].endswith(" = 0.250 [0.200, 0.310]")
    assert lines[2].endswith(" = 0.250")
    assert lines[6].endswith(" = -1.000")


def test_lines_name_the_thresholds_they_average() -> None:
    for thresholds, words in (((0.3, 0.5, 0.6), "IoU=0.30:0.60 "), ((0.4,), "IoU=0.40      ")):
        params = CocoParams(iou_thresholds=thresholds)
        stats = {m.name: 0.5 for m in metrics_of(params)}
        lines = summary_lines({"bbox": CocoScores("bbox", stats, {}, 1, 1, params)})
        assert words in lines[1]


def test_lines_of_both_types() -> None:
    assert len(summary_lines(scores())) == 26


def test_scores_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "scores.json"
    write_scores(scores(), path)
    read = json.loads(path.read_text())
    assert list(read) == ["bbox", "segm"]
    assert read["segm"] == scores()["segm"].to_dict()
    assert list(read["bbox"]["stats"]) == list(METRIC_NAMES)
    assert list(path.parent.iterdir()) == [path]
