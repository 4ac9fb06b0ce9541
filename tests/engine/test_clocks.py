"""Clocks that go back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instseg.engine.checkpoint import CheckpointFolder, Header
from instseg.engine.tensorboard_logger import TensorBoardLogger

from .disks import loaded_step, save
from .test_loggers import train
from .tiny import assert_same_run, make_trainer, read_rows


def test_a_clock_that_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trainer(tmp_path / "whole").run()
    seconds = iter(range(2_000_000_000, 0, -3600))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(seconds)))
        patch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)
        make_trainer(tmp_path / "run").run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("images_per_second", 1.0) for line in lines]
    assert all(rate > 0 for rate in rates)
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "whole")


def test_the_newest_checkpoint_is_told_by_its_name(tmp_path: Path, header: Header) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, header, 1)
    save(folder, header, 2)
    os.utime(folder.last, (0, 0))
    os.utime(folder.previous, (2e9, 2e9))
    assert loaded_step(tmp_path) == 2


def test_tensorboard_after_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs, each an hour before the last; each goes on after step 2 of the one before."""
    for number, now in enumerate((1_700_007_200, 1_700_003_600, 1_700_000_000)):
        monkeypatch.setattr(time, "time", lambda now=now: float(now))
        logger = TensorBoardLogger(tmp_path)
        logger.rewind(2 * number, 0)
        for step in range(2 * number + 1, 2 * number + 4):
            logger.log(train(step) | {"loss": float(number)})
        logger.close()
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_tensorboard_files_of_one_second_are_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch numbers a process's files, and 10 comes before 9 in the order of names."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    for step in range(1, 13):
        logger = TensorBoardLogger(tmp_path)
        logger.rewind(step - 1, 0)
        logger.log(train(step) | {"loss": float(step)})
        logger.close()
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(step, float(step)) for step in range(1, 13)]
