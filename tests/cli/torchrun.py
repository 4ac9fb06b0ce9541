"""Trainings under torchrun for the tests: started, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def torchrun(
    config: Path, run: Path, *arguments: str, options: tuple[str, ...], **environment: str
) -> Iterator[Any]:
    """An agent of torchrun, which starts the workers of its node."""
    argv = [sys.executable, "-m", "torch.distributed.run", *options]
    argv += ["tools/train_net.py", "--config", str(config), "--output", str(run), *arguments]
    process = subprocess.Popen(
        argv,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        kill_node(process)


def pair(config: Path, run: Path, *arguments: str, restarts: int = 0) -> Any:
    """Two workers on one node."""
    options = ("--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}")
    return torchrun(config, run, *arguments, options=options)


def node(config: Path, run: Path, port: int, number: int, *, hosts_store: bool = False) -> Any:
    """One of two nodes with a worker each; they are numbered in the order of their addresses."""
    options = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d")
    options += (f"--rdzv-endpoint=127.0.0.1:{port}", f"--local-addr=127.0.0.{number}")
    options += (f"--rdzv-conf=is_host={int(hosts_store)},keep_alive_interval=1",)
    # Without it torch tells the workers' store to the nodes of the first start alone.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return torchrun(config, run, "--resume", options=options, **environment)


def kill_node(process: Any) -> None:
    """The agent and its workers, which have sessions of their own and would outlive it."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # it starts no more workers
        for pid in [process.pid, *children_of(process.pid)]:
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def finish(*processes: Any) -> list[str]:
    """What each printed until it ended, with no error."""
    with ThreadPoolExecutor() as pool:  # none may wait for a reader
        outputs = [pool.submit(process.communicate, timeout=300) for process in processes]
        said = [output.result()[0] for output in outputs]
    assert {process.returncode for process in processes} == {0}, "\n".join(said)
    return said


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Until ``step`` is logged since the present workers have begun."""
    log = run / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and log.read_text().count('"kind": "train"') >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"ended before step {step}:\n{process.communicate()[0]}")


def workers_of(agent: int) -> list[int]:
    """The processes that torchrun has started, by their number in the group."""
    return [
        pid
        for pid in children_of(agent)
        if b"train_net.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sorted(int(child) for t in threads for child in (t / "children").read_text().split())
