"""A real Mask R-CNN, killed or stopped and resumed, ends bit-equal to one that was left alone."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.cli.train import main
from instseg.engine.weights import load_weights

from .tiny import rows, write_config


@pytest.fixture(scope="module")
def processes() -> Any:
    """Fresh processes without the seconds that importing torch takes in each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["instseg.cli.train", "timm", "torch._dynamo"])
    return context


def train_in_process(argv: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(argv))


def start(processes: Any, config: Path, run: Path, *arguments: str) -> Any:
    argv = ["--config", str(config), "--output", str(run), *arguments]
    process = processes.Process(target=train_in_process, args=(argv,))
    process.start()
    return process


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Until ``step`` is logged."""
    log = run / "metrics.jsonl"
    while process.is_alive():
        if log.exists() and log.read_text().count('"kind": "train"') >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"the training ended before step {step}, with {process.exitcode}")


def assert_same_run(run: Path, undisturbed: Path) -> None:
    for name in ("final.safetensors", "best.safetensors", "last.safetensors"):
        tensors, expected = (load_weights(folder / name)[0] for folder in (run, undisturbed))
        assert tensors.keys() == expected.keys()
        differing = [key for key in expected if not torch.equal(tensors[key], expected[key])]
        assert differing == [], name
    assert (run / "final.safetensors").stat().st_size == (
        undisturbed / "final.safetensors"
    ).stat().st_size
    for kind in ("train", "eval"):
        assert rows(run, kind) == rows(undisturbed, kind)


@pytest.mark.parametrize("step", [4, 14])
def test_killed_and_resumed_with_other_workers(
    processes: Any, config: Path, trained: Path, tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    process = start(processes, config, run)
    wait_for_step(run, step, process)
    process.join(timeout=random.uniform(0, 0.15))
    assert process.is_alive()
    process.kill()
    process.join()
    assert not (run / "final.safetensors").exists()
    argv = ["--config", str(config), "--output", str(run), "--resume", "data.workers=2"]
    assert main(argv) == 0
    assert_same_run(run, trained)


def test_stopped_by_sigterm(processes: Any, config: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(processes, config, run, "data.workers=1", "train.save_every=1")
    wait_for_step(run, 5, process)
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == 3
    assert not (run / "final.safetensors").exists()
    last = rows(run, "train")[-1]["step"]
    assert main(["--config", str(config), "--output", str(run), "--resume"]) == 0
    assert_same_run(run, trained)
    assert 5 <= last < rows(run, "train")[-1]["step"]


def test_resuming_a_finished_run_changes_nothing(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.jsonl")}
    assert main(["--config", str(config), "--output", str(run), "--resume"]) == 0
    assert_same_run(run, trained)
    assert {name: (run / name).read_bytes() for name in before} == before


# --- what is refused ----------------------------------------------------------------------------


def test_a_folder_with_a_run_is_not_overwritten(
    config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    argv = ["--config", str(config), "--output", str(run), "train.seed=5"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert f"error: {run} holds a run" in error
    assert "--resume" in error
    assert "Traceback" not in error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_changed_configuration_is_not_resumed(
    config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    argv = ["--config", str(config), "--output", str(run), "--resume"]
    changes = ["train.optimizer.lr=1e-3", "model.rpn.samples=64", "data.batch_size=4"]
    assert main([*argv, *changes]) == 2
    error = capsys.readouterr().err
    keys = "data.batch_size, model.rpn.samples, train.optimizer.lr"
    assert f"error: {run / 'config.yaml'} says otherwise in {keys}:" in error
    assert "Traceback" not in error


def test_what_changes_only_the_work_may_change(config: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "elsewhere"
    shutil.copytree(trained, run)
    free = ["data.workers=1", "data.on_error=skip", "train.log_every=7", "train.save_every=9"]
    argv = ["--config", str(config), "--output", str(run), "--resume", "train.device=cpu", *free]
    assert main(argv) == 0


def test_a_run_that_never_saved_may_be_begun_anew(tmp_path: Path, shapes: Path) -> None:
    """Its ``config.yaml`` must become that of the new run."""
    config = write_config(tmp_path, shapes, ("epochs: 6", "epochs: 1"))
    run = tmp_path / "run"
    argv = ["--config", str(config), "--output", str(run)]
    assert main([*argv, "train.optimizer={name: sgd, lr: 1e9}", "train.save_every=99"]) == 2
    assert "sgd" in (run / "config.yaml").read_text()
    assert main(argv) == 0
    assert "sgd" not in (run / "config.yaml").read_text()
    assert main([*argv, "--resume"]) == 0
