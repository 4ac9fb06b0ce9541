"""One training in two processes under torchrun, undisturbed and with one of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from instseg.cli import train
from instseg.config.loader import load_config
from instseg.config.schema import Config

from .test_resume import assert_same_run
from .tiny import STEPS, refused, rows, write_config

pytestmark = pytest.mark.slow


def launch(config: Path, run: Path, *arguments: str, restarts: int = 0) -> Any:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    argv += [f"--max-restarts={restarts}", "tools/train_net.py", "--config", str(config)]
    return subprocess.Popen(
        [*argv, "--output", str(run), *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: Any) -> str:
    output: str = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> tuple[Path, str]:
    """The folder of a run in two processes, and what it printed."""
    folder = tmp_path_factory.mktemp("together")
    process = launch(write_config(folder, shapes), folder / "run")
    return folder / "run", finish(process)


def test_two_processes_train_as_one(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    run, said = together
    assert train.main(["--config", str(config), "--output", str(tmp_path), "train.replicas=2"]) == 0
    both, alone = rows(run, "train"), rows(tmp_path, "train")
    assert [row["step"] for row in both] == list(range(1, STEPS // 2 + 1))
    for mine, theirs in zip(both, alone, strict=True):
        assert mine["lr"] == theirs["lr"]
        # Sums in another order; what a detector keeps of near ties follows them.
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.01)
    # AdamW: the square root of 2 replicas. One line of log, from one process.
    assert both[2]["lr"] == pytest.approx(2.0e-3 * 2**0.5)
    assert said.count("training finished at step") == 1
    assert load_config(run / "config.yaml", Config).train.replicas == 2


def test_one_process_goes_on_where_two_began(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """With two replicas still, and the learning rates of the whole training."""
    process = launch(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 4, process)
    process.terminate()
    process.communicate(timeout=120)
    before = len(rows(tmp_path / "run", "train"))
    assert 4 <= before < STEPS // 2
    argv = ["--config", str(config), "--output", str(tmp_path / "run"), "--resume"]
    assert train.main(argv) == 0
    mine, expected = rows(tmp_path / "run", "train"), rows(together[0], "train")
    assert [(row["step"], row["lr"]) for row in mine] == [
        (row["step"], row["lr"]) for row in expected
    ]
    assert mine[:before] == expected[:before]
    assert mine[before]["loss"] == pytest.approx(expected[before]["loss"], rel=0.01)


def test_a_killed_worker_is_started_again_without_hands(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    process = launch(config, tmp_path / "run", "--resume", restarts=3)
    for step in (3, 8):
        wait_for_step(tmp_path / "run", step, process)
        os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    said = finish(process)
    assert said.count("resumed from") == 2
    assert_same_run(tmp_path / "run", together[0])
    assert rows(tmp_path / "run", "train") == rows(together[0], "train")


def test_too_many_processes(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "rank_and_size", lambda: (0, 4))
    argv = ["--config", str(config), "--output", str(tmp_path / "run"), "train.replicas=2"]
    refused(train.main, argv, capsys, "too few batches to share among 4 processes; start 2")


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Until ``step`` is logged since the present workers have begun."""
    log = run / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and log.read_text().count('"kind": "train"') >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"ended before step {step}:\n{process.communicate()[0]}")


def workers_of(pid: int) -> list[int]:
    """The processes that torchrun has started, by their number in the group."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    found = {int(child) for t in threads for child in (t / "children").read_text().split()}
    return sorted(
        worker
        for worker in found
        if b"train_net.py" in Path(f"/proc/{worker}/cmdline").read_bytes()
    )
