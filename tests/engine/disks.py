"""Saves, disks that are small or cannot be written to, and work that may end in between."""

from __future__ import annotations

import os
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instseg.engine.checkpoint import CheckpointFolder, Header

KIB = 1024


def in_child(work: Callable[[], None]) -> int:
    """Do ``work`` in a forked process; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code != 0:
                traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save(folder: CheckpointFolder, header: Header, step: int, numbers: int = 1000) -> None:
    tensors = {"a": torch.full((numbers,), float(step))}
    folder.save(tensors, header.model_copy(update={"step": step}))


def loaded_step(run_dir: Path) -> int:
    """The step of the checkpoint that a resume would take, which must be whole."""
    found = CheckpointFolder(run_dir).load()
    assert found is not None
    _, stored, header = found
    value = stored.about["a"]
    assert torch.equal(value, torch.full_like(value, float(header.step)))
    return header.step


def mounted(folder: Path, *options: str) -> Callable[[], None]:
    """Mount a file system of its own there, or skip; returns what undoes it."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    return lambda: subprocess.run(["umount", "-l", str(folder)], check=True) and None


def fill(folder: Path, leave: int = 0) -> Path:
    """Use all space but ``leave`` bytes."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4 * KIB))
        except OSError:
            file.truncate(max(0, ballast.stat().st_size - leave))
    return ballast
