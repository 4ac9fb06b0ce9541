"""A run that is killed and resumed must end bit-equal to one that was left alone."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.engine.checkpoint import read_checkpoint
from instseg.engine.schedule import Cosine

from .tiny import (
    TRAPS,
    TinyLoader,
    TinyModel,
    assert_same_run,
    make_options,
    make_trainer,
    read_rows,
    run_in_process,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others must equal."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert make_trainer(run_dir).run().status == "finished"
    return run_dir


@pytest.fixture(scope="module")
def processes() -> Any:
    """Fresh processes without the seconds that importing torch takes in each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.tiny", "torch._dynamo"])
    return context


def start(
    processes: Any,
    run_dir: Path,
    workers: int = 0,
    delay: float = 0.0,
    trap: str | None = None,
    count: int = 0,
) -> Any:
    process = processes.Process(target=run_in_process, args=(run_dir, workers, delay, trap, count))
    process.start()
    return process


def finish(process: Any) -> int:
    process.join(timeout=60)
    assert process.exitcode is not None
    return process.exitcode


def wait_for_checkpoint(process: Any, run_dir: Path) -> None:
    """Until the process has saved once more, or has ended."""

    def stamp() -> int:
        try:
            return (run_dir / "last.safetensors").stat().st_mtime_ns
        except FileNotFoundError:  # before the first one, and between the two renames of a save
            return 0

    before = stamp()
    while process.is_alive() and stamp() in (before, 0):
        time.sleep(0.001)


def wait_for_death(pid: int) -> None:
    """Until ``pid`` is gone; joining it would also wait for its orphaned loader workers."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.001)


def test_the_undisturbed_run_uses_every_feature(undisturbed: Path) -> None:
    tensors, header = read_checkpoint(undisturbed / "last.safetensors")
    assert header.step == 24
    assert header.epoch == 8
    assert header.best is not None
    assert header.best.epoch < 8  # so that a resume has a best score to remember
    assert "optimizer.conv.weight.momentum_buffer" in tensors
    assert int(tensors["ema.n_averaged"]) == 24
    assert not torch.equal(tensors["ema.module.conv.weight"], tensors["model.conv.weight"])
    rows = read_rows(undisturbed)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [4, 8, 12, 16, 20, 24]
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [2, 4, 6, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(
    undisturbed: Path, processes: Any, tmp_path: Path, workers: int
) -> None:
    moments = random.Random(workers)
    kills = 0
    while True:
        process = start(processes, tmp_path, workers, delay=0.005)
        # Past one to five more checkpoints, so that a slow machine gets on too, and then anywhere.
        for _ in range(moments.randint(1, 5)):
            wait_for_checkpoint(process, tmp_path)
        process.join(timeout=moments.uniform(0, 0.05))
        process.kill()
        wait_for_death(process.pid)
        if (tmp_path / "status").exists():
            break
        kills += 1
    assert kills >= 2
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.parametrize("trap", TRAPS)
def test_killed_at_the_worst_moments(
    undisturbed: Path, processes: Any, tmp_path: Path, trap: str
) -> None:
    """Each attempt dies at a later call than the one before, so that every kind of call is hit."""
    kills = 0
    for count in range(1, 60, 3):
        code = finish(start(processes, tmp_path, trap=trap, count=count))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    assert_same_run(undisturbed, tmp_path)


def test_sigterm_saves_and_ends_cleanly(undisturbed: Path, processes: Any, tmp_path: Path) -> None:
    process = start(processes, tmp_path, delay=0.05)
    wait_for_checkpoint(process, tmp_path)
    process.terminate()
    assert finish(process) == 0
    assert (tmp_path / "status").read_text() == "interrupted"
    assert make_trainer(tmp_path).run(resume=True).status == "finished"
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 0.01},
        {"options": {"amp": "bf16"}},
        {"options": {"amp": "fp16"}},
        {"options": {"ema_decay": None, "accumulate": 1, "clip_norm": None}},
        {"schedule": Cosine(24, warmup_steps=3)},
        {"channels_last": True},
    ],
    ids=["adamw", "bf16", "fp16", "plain", "cosine", "channels_last"],
)
def test_interrupted_with_other_features(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = dict(changes)
    options = make_options(**changes.pop("options", {}))
    schedule = changes.pop("schedule", None)
    channels_last = changes.pop("channels_last", False)

    def build(run_dir: Path, stop_at: int | None = None) -> Any:
        def interrupt(batch: int) -> None:
            if batch == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        model = TinyModel()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loader = TinyLoader(on_batch=interrupt)
        trainer = make_trainer(run_dir, options=options, loader=loader, model=model, **changes)
        if schedule is not None:
            trainer.schedule = schedule
        return trainer

    build(tmp_path / "whole").run()
    assert build(tmp_path / "parts", stop_at=13).run().status == "interrupted"
    resumed = build(tmp_path / "parts")
    assert resumed.run(resume=True).status == "finished"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    weight = resumed.model.conv.weight
    for slot in resumed.optimizer.state[weight].values():
        assert slot.ndim == 0 or slot.stride() == weight.stride()


def test_the_loader_goes_on_at_its_place(tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch == 7:  # the second step of the second epoch takes batches 7 and 8
            os.kill(os.getpid(), signal.SIGINT)

    assert make_trainer(tmp_path, loader=TinyLoader(on_batch=interrupt)).run().step == 5
    loader = TinyLoader()
    make_trainer(tmp_path, loader=loader).run(resume=True)
    assert loader.started[:2] == [(1, 4), (2, 0)]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "text"])
def test_a_damaged_last_checkpoint_falls_back_to_the_previous(
    undisturbed: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(batch: int) -> None:
        if batch == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    make_trainer(tmp_path, loader=TinyLoader(on_batch=interrupt)).run()
    last = tmp_path / "last.safetensors"
    data = last.read_bytes()
    if damage == "gone":
        last.unlink()
    else:
        last.write_bytes({"cut": data[:-1], "empty": b"", "text": b"not a checkpoint"}[damage])
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path).run(resume=True)
    assert "last.safetensors" in caplog.text
    assert f"falling back to {tmp_path / 'previous.safetensors'}" in caplog.text
    assert_same_run(undisturbed, tmp_path)


def test_a_damaged_last_never_replaces_a_good_previous(tmp_path: Path) -> None:
    make_trainer(tmp_path, options=make_options(epochs=1)).run()
    good = (tmp_path / "previous.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    trainer = make_trainer(tmp_path)
    trainer._load_checkpoint()
    trainer.state.step += 1
    trainer._save_checkpoint()
    assert (tmp_path / "previous.safetensors").read_bytes() == good
    read_checkpoint(tmp_path / "last.safetensors")


def test_resuming_a_finished_run_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path).run()
    loader = TinyLoader()
    result = make_trainer(tmp_path, loader=loader).run(resume=True)
    assert result.status == "finished"
    assert loader.started == []
    assert_same_run(undisturbed, tmp_path)


def test_changed_settings_are_taken_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, options=make_options(epochs=1)).run()
    trainer = make_trainer(tmp_path, options=make_options(epochs=2), lr=0.02)
    with caplog.at_level(logging.WARNING):
        trainer.run(resume=True)
    assert "param_groups was" in caplog.text
    assert "'initial_lr': 0.05" in caplog.text
    assert "schedule was" not in caplog.text
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)  # step 5: no factor


@pytest.mark.gpu
def test_interrupted_on_a_gpu(tmp_path: Path) -> None:
    """With fp16 and dropout-like noise from the GPU's own generator; its sums are not bit-equal."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def build(run_dir: Path, stop_at: int | None = None) -> Any:
        def interrupt(batch: int) -> None:
            if batch == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        loader = TinyLoader(on_batch=interrupt)
        options = make_options(amp="fp16")
        return make_trainer(run_dir, options=options, loader=loader, model=TinyModel().cuda())

    build(tmp_path / "whole").run()
    assert build(tmp_path / "parts", stop_at=13).run().status == "interrupted"
    assert build(tmp_path / "parts").run(resume=True).status == "finished"
    whole, whole_header = read_checkpoint(tmp_path / "whole" / "last.safetensors")
    parts, parts_header = read_checkpoint(tmp_path / "parts" / "last.safetensors")
    assert whole_header.scaler == parts_header.scaler
    assert whole_header.scaler["scale"] > 0
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-3, atol=1e-4)
