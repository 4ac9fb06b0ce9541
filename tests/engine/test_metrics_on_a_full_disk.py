"""Metrics wait for room, and a training does not end for want of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.patient_logger import PatientLogger
from instseg.engine.tensorboard_logger import TensorBoardLogger

from .disks import fill
from .test_loggers import read_csv, read_jsonl, train
from .tiny import TinyLoader, assert_same_run, make_trainer


def wide(step: int) -> dict[str, Any]:
    """A row of some 2 KB, so that disks fill up in the middle of it."""
    return train(step, **{f"figure_{number:03d}": step / 7 for number in range(50)})


@pytest.mark.parametrize("kind", [JsonlLogger, CsvLogger])
def test_metrics_wait_for_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture, kind: type[JsonlLogger | CsvLogger]
) -> None:
    inner = kind(small_disk / "metrics")
    logger = PatientLogger(inner)
    logger.rewind(0, 0)
    logger.log(train(1))
    ballast = fill(small_disk)
    for step in range(2, 20):
        logger.log(wide(step) | ({"new": 1.0} if step > 12 else {}))
    read = read_jsonl if kind is JsonlLogger else read_csv
    before = [int(row["step"]) for row in read(inner.path)]
    assert 1 <= len(before) < 19  # the file's last block had room
    assert before == list(range(1, len(before) + 1))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "metrics: No space left on device: " in caplog.text
    assert "bytes are free there; make room" in caplog.text
    assert "The training goes on" in caplog.text
    ballast.unlink()
    for step in range(20, 60):
        logger.log(wide(step))
    assert "nothing is missing" in caplog.text
    assert [int(row["step"]) for row in read(inner.path)] == list(range(1, 60))
    assert float(read(inner.path)[14]["new"]) == 1.0


def test_rows_that_are_never_written_are_told(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = PatientLogger(CsvLogger(small_disk / "metrics.csv"))
    fill(small_disk)
    for step in range(1, 4):
        logger.log(wide(step))
    logger.close()
    assert "3 rows of metrics were never written" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_waits_for_room(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = PatientLogger(TensorBoardLogger(small_disk / "tensorboard"))
    logger.rewind(0, 0)
    for step in range(1, 4):
        logger.log(wide(step))
    ballast = fill(small_disk)
    for step in range(4, 12):
        logger.log(wide(step))
    assert caplog.text.count("The training goes on") == 1
    ballast.unlink()
    for step in range(12, 20):
        logger.log(wide(step))
    logger.close()
    assert "nothing is missing" in caplog.text
    events = EventAccumulator(str(small_disk / "tensorboard")).Reload()
    points = {event.step: event.value for event in events.Scalars("train/loss")}
    assert points == {step: step / 8 for step in range(1, 20)}


def test_a_full_disk_for_metrics_alone_does_not_end_a_training(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path / "whole").run()
    files = [JsonlLogger(small_disk / "metrics.jsonl"), CsvLogger(small_disk / "metrics.csv")]
    fill(small_disk)
    trainer = make_trainer(tmp_path / "run", loggers=[PatientLogger(file) for file in files])
    assert trainer.run().status == "finished"
    assert caplog.text.count("The training goes on") == 2
    assert caplog.text.count("rows of metrics were never written") == 2
    for name in ("last.safetensors", "best.safetensors", "final.safetensors"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "run" / name).read_bytes() == whole


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', "\0\0\0\0", "ééé"])
def test_a_half_written_last_line_is_mended(tmp_path: Path, tail: str) -> None:
    make_trainer(tmp_path / "whole").run()

    def interrupt(number: int) -> None:
        if number == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    make_trainer(tmp_path / "parts", loader=TinyLoader(on_batch=interrupt)).run()
    for name in ("metrics.jsonl", "metrics.csv"):
        with open(tmp_path / "parts" / name, "a") as file:
            file.write(tail)
    make_trainer(tmp_path / "parts").run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
