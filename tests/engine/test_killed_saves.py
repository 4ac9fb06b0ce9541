"""Kills at every boundary of a save, and within its bytes."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instseg.engine.checkpoint import CheckpointFolder, Header
from instseg.engine.errors import CheckpointError

from .disks import in_child, loaded_step, save

CALLS = ("open", "fsync", "replace", "rename", "link", "unlink", "close")


def kill_at(count: int, before: bool) -> None:
    """Make the ``count``-th of all file system calls of this process its last."""
    calls = iter(range(1, 10**9))

    def trapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            is_last = next(calls) == count
            if is_last and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **settings)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, trapped(getattr(os, name)))


@pytest.mark.parametrize("saved", [0, 1, 2])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_call_of_a_save(
    tmp_path: Path, header: Header, saved: int, before: bool
) -> None:
    steps = set()
    for count in range(1, 100):
        run_dir = tmp_path / str(count)
        run_dir.mkdir()
        folder = CheckpointFolder(run_dir)
        for step in range(1, saved + 1):
            save(folder, header, step)

        def work(count: int = count, folder: CheckpointFolder = folder) -> None:
            kill_at(count, before)
            save(folder, header, saved + 1)

        code = in_child(work)
        if code == -signal.SIGKILL and saved == 0 and not folder.exists():
            assert folder.load() is None
        else:
            steps.add(loaded_step(run_dir))
        save(folder, header, saved + 2)  # what a kill left lies in nobody's way
        assert loaded_step(run_dir) == saved + 2
        names = {path.name for path in run_dir.iterdir()}
        assert names <= {"last.safetensors", "previous.safetensors"}
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert count >= 5  # fsync of the file, a rename or two, and the folder's open, fsync, close
    assert steps == ({saved, saved + 1} if saved else {1})


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "refused"])
def test_ended_at_any_byte_of_a_save(
    tmp_path: Path, header: Header, is_killed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The system's limit on a file's size kills, or refuses, in the middle of a write."""
    folder = CheckpointFolder(tmp_path)
    save(folder, header, 1)
    save(folder, header, 2)
    size = folder.last.stat().st_size
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    for limit in [0, 1, 8, 100, 1024, size // 2, size - 1]:

        def work(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if is_killed else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(CheckpointError, match=r"last\.s.*File too large.*ulimit -f"):
                save(folder, header, 3)

        assert in_child(work) == (-signal.SIGXFSZ if is_killed else 0), capfd.readouterr().err
        assert loaded_step(tmp_path) == 2
        left = {path.name: path.read_bytes() for path in tmp_path.glob("[!.]*")}
        assert left == before
    save(folder, header, 3)
    assert loaded_step(tmp_path) == 3


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_rename_that_fails_leaves_a_checkpoint(
    tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, header, 1)
    save(folder, header, 2)
    calls = iter(range(1, 10**9))
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        if failing < 3:
            with pytest.raises(CheckpointError, match=r"last\.s.*Input/output.*see the system's"):
                save(folder, header, 3)
            assert folder.last.exists()
        else:
            save(folder, header, 3)
    assert loaded_step(tmp_path) == (2 if failing < 3 else 3)
    assert not list(tmp_path.glob(".*"))
