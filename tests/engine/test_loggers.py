"""Metrics files: every row once, whatever was cut short."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.tensorboard_logger import TensorBoardLogger


def train(step: int, epoch: int = 1, **figures: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": epoch, "loss": step / 8, **figures}


def score(step: int, epoch: int, **figures: Any) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "epoch": epoch, **figures}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_jsonl_rows(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "m.jsonl")
    logger.log(train(1))
    logger.log(score(1, 1, **{"segm/AP": float("nan"), "segm/AP50": 0.5}))
    assert read_jsonl(logger.path) == [
        {"kind": "train", "step": 1, "epoch": 1, "loss": 0.125},
        {"kind": "eval", "step": 1, "epoch": 1, "segm/AP": None, "segm/AP50": 0.5},
    ]


def test_csv_columns_keep_their_place_and_grow_at_the_right(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "m.csv")
    logger.log(train(1))
    logger.log(score(1, 1, AP=0.5))
    logger.log(train(2, lr=1e-05))
    logger.log(score(2, 2, AP=float("inf")))
    assert logger.path.read_text().splitlines() == [
        "kind,step,epoch,loss,AP,lr",
        "train,1,1,0.125,,",
        "eval,1,1,,0.5,",
        "train,2,1,0.25,,1e-05",
        "eval,2,2,,,",
    ]


@pytest.mark.parametrize("kind", [JsonlLogger, CsvLogger])
def test_rewind_cuts_what_came_after_the_checkpoint(tmp_path: Path, kind: Any) -> None:
    """The checkpoint: 4 steps done, epoch 2 of two steps not closed, so its score is to come."""
    logger = kind(tmp_path / "m")
    for row in (
        train(2),
        score(2, 1, AP=0.1),
        train(4, 2),
        score(4, 2, AP=0.2),
        train(6, 3, extra=1),
    ):
        logger.log(row)
    logger = kind(tmp_path / "m")
    logger.rewind(4, 1)
    read = read_jsonl if kind is JsonlLogger else read_csv
    kept = [(row["kind"], int(row["step"])) for row in read(logger.path)]
    assert kept == [("train", 2), ("eval", 2), ("train", 4)]
    logger.log(score(4, 2, AP=0.2))
    assert [row["kind"] for row in read(logger.path)] == ["train", "eval", "train", "eval"]
    logger.rewind(4, 2)
    assert len(read(logger.path)) == 4
    logger.rewind(0, 0)
    assert read(logger.path) == []
    logger.log(train(1))
    assert len(read(logger.path)) == 1


@pytest.mark.parametrize("kind", [JsonlLogger, CsvLogger])
def test_rewind_drops_a_row_cut_short(tmp_path: Path, kind: Any) -> None:
    """'...,10' cut from '...,100' still reads as a row; only the missing line end betrays it."""
    logger = kind(tmp_path / "m")
    logger.log(train(1))
    whole = logger.path.read_bytes()
    logger.log(train(100))
    logger.path.write_bytes(logger.path.read_bytes()[:-3])
    logger.rewind(1000, 1000)
    assert logger.path.read_bytes() == whole


def test_rewind_drops_foreign_lines_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = JsonlLogger(tmp_path / "m.jsonl")
    logger.log(train(1))
    whole = logger.path.read_text()
    foreign = ["not json", "[1]", "7", '{"step": 1}', '{"kind": "train", "step": "x"}']
    logger.path.write_text("\n".join([*foreign, whole]))
    with caplog.at_level(logging.WARNING):
        logger.rewind(5, 5)
    assert logger.path.read_text() == whole
    assert len(caplog.records) == len(foreign)
    assert str(logger.path) in caplog.text


def test_rewind_without_a_file_makes_none(tmp_path: Path) -> None:
    for kind in (JsonlLogger, CsvLogger):
        kind(tmp_path / "m").rewind(3, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        JsonlLogger(Path("/dev/full")).log(train(1))


def test_tensorboard_shows_each_step_once_after_a_rewind(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.rewind(0, 0)
    for step in (1, 2, 3):
        logger.log(train(step))
    logger.log(score(3, 1, **{"segm/AP": 0.25}))
    logger.close()
    logger.rewind(2, 0)
    logger.log(train(3) | {"loss": 7.0})
    logger.close()
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(1, 0.125), (2, 0.25), (3, 7.0)]
    assert [event.value for event in events.Scalars("eval/segm/AP")] == []
