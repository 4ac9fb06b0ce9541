"""One training in two processes under torchrun: undisturbed, one of them killed, a node lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from instseg.cli import train
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.engine.weights import load_weights
from tests.engine.group import free_port

from .test_resume import assert_same_run
from .tiny import STEPS, refused, rows, write_config
from .torchrun import finish, kill_node, node, pair, wait_for_step, workers_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> tuple[Path, str]:
    """The folder of a run in two processes, and what it printed."""
    folder = tmp_path_factory.mktemp("together")
    with pair(write_config(folder, shapes), folder / "run") as process:
        return folder / "run", finish(process)[0]


def test_two_processes_train_as_one(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    run, said = together
    assert train.main(["--config", str(config), "--output", str(tmp_path), "train.replicas=2"]) == 0
    both = rows(run, "train")
    assert [row["step"] for row in both] == list(range(1, STEPS // 2 + 1))
    # A step has two batches, and the sum of two numbers knows no order: equal to the bit. With more
    # the order counts. Of four batches the losses differ by 1e-8 at first, by 1e-5 after ten steps,
    # and by some percent from then on, when ties of samples and boxes break otherwise.
    assert both == rows(tmp_path, "train")
    weights, expected = (load_weights(f / "final.safetensors")[0] for f in (run, tmp_path))
    differing = {name for name in expected if not torch.equal(weights[name], expected[name])}
    moving = ("running_mean", "running_var", "num_batches_tracked")  # by step, and by batch
    assert {name for name in expected if name.endswith(moving)} == differing
    # AdamW: the square root of 2 replicas. One line of log, from one process.
    assert both[2]["lr"] == pytest.approx(2.0e-3 * 2**0.5)
    assert said.count("training finished at step") == 1
    assert load_config(run / "config.yaml", Config).train.replicas == 2


def test_one_process_goes_on_where_two_began(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """With two replicas still, and the learning rates of the whole training."""
    with pair(config, tmp_path / "run") as process:
        wait_for_step(tmp_path / "run", 4, process)
        process.terminate()
        process.communicate(timeout=120)
    before = len(rows(tmp_path / "run", "train"))
    assert 4 <= before < STEPS // 2
    argv = ["--config", str(config), "--output", str(tmp_path / "run"), "--resume"]
    assert train.main(argv) == 0
    assert rows(tmp_path / "run", "train") == rows(together[0], "train")


def test_a_killed_worker_is_started_again_without_hands(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    with pair(config, tmp_path / "run", "--resume", restarts=3) as process:
        for step in (3, 8):
            wait_for_step(tmp_path / "run", step, process)
            os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
        (said,) = finish(process)
    assert said.count("resumed from") == 2
    assert_same_run(tmp_path / "run", together[0])


def test_a_lost_node_is_replaced_without_hands(
    together: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """By a fresh one, which counts its restarts from zero and becomes the first."""
    run, port = tmp_path / "run", free_port()
    with node(config, run, port, 2, hosts_store=True) as stays:
        with node(config, run, port, 3) as lost:
            wait_for_step(run, 5, stays)
            kill_node(lost)
        with node(config, run, port, 1) as fresh:
            said, _ = finish(fresh, stays)
    assert "resumed from" in said
    assert_same_run(run, together[0])


def test_too_many_processes(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "rank_and_size", lambda: (0, 4))
    argv = ["--config", str(config), "--output", str(tmp_path / "run"), "train.replicas=2"]
    refused(train.main, argv, capsys, "too few batches to share among 4 processes; start 2")
