"""A signal to every process of a training, as torchrun, batch systems and Ctrl-C send it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instseg.cli.train import main
from instseg.engine.signals import StopSignals

from .test_resume import assert_same_run, wait_for_step
from .tiny import rows


class Training:
    """The command in a session of its own, which holds whatever it starts."""

    def __init__(self, config: Path, run: Path, *arguments: str) -> None:
        argv = [sys.executable, "tools/train_net.py", "--config", str(config), "--output", str(run)]
        self._log = run.with_suffix(".log")
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*argv, *arguments],
                cwd=Path(__file__).parents[2],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def signal_all(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def said(self) -> str:
        return self._log.read_text()

    def finish(self) -> None:
        """Wait for the end of every process."""
        self._process.wait(timeout=300)
        deadline = time.monotonic() + 60  # a fork server notices that it is needed no more
        while self.processes():
            assert time.monotonic() < deadline, "processes are left behind"
            time.sleep(0.05)

    def processes(self) -> list[str]:
        """The numbers of all that have not ended."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # has ended meanwhile
                continue
            if int(session) == self._process.pid and state != "Z":
                found.append(folder.name)
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moment"), [("spawn", "workers start"), ("forkserver", "workers work")]
)
def test_all_processes_are_signalled(
    config: Path, trained: Path, tmp_path: Path, method: str, moment: str
) -> None:
    run = tmp_path / "run"
    settings = ["data.workers=2", f"data.start_method={method}", "data.on_worker_fault=stop"]
    training = Training(config, run, *settings, "train.save_every=99")
    if moment == "workers start":
        while len(training.processes()) < 3:  # multiprocessing has one of its own
            assert training.is_alive(), training.said()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
    else:
        wait_for_step(run, 5, training)
    training.signal_all(signal.SIGTERM)
    training.finish()
    said = training.said()
    assert training.exitcode == 3, said
    assert "Traceback" not in said
    assert "SIGTERM: finishing this step" in said
    last = rows(run, "train")[-1]["step"]
    assert main(["--config", str(config), "--output", str(run), "--resume"]) == 0
    assert_same_run(run, trained)
    assert last < rows(run, "train")[-1]["step"]


def test_a_signal_that_comes_twice_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """As under torchrun, which passes on what its processes have got already."""
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert stop.requested is None
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested is signal.SIGTERM
        assert caplog.text.count("SIGTERM: finishing this step, then saving") == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
