"""Full and read-only disks, clocks that go back, kills at every boundary of a save."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instseg.engine.checkpoint import CheckpointFolder, Header, read_checkpoint
from instseg.engine.disk import how_to_mend
from instseg.engine.errors import CheckpointError
from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.patient_logger import PatientLogger
from instseg.engine.tensorboard_logger import TensorBoardLogger
from instseg.engine.weights import load_weights, save_weights

from .test_loggers import read_csv, read_jsonl, train
from .tiny import TinyLoader, assert_same_run, make_options, make_trainer, read_rows

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


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    run_dir = tmp_path_factory.mktemp("run")
    make_trainer(run_dir, options=make_options(epochs=1)).run()
    return read_checkpoint(run_dir / "last.safetensors")[1]


def save(folder: CheckpointFolder, header: Header, step: int, numbers: int = 1000) -> None:
    tensors = {"a": torch.full((numbers,), float(step))}
    folder.save(tensors, header.model_copy(update={"step": step}))


def loaded_step(run_dir: Path) -> int:
    """The step of the checkpoint that a resume would take, which must be whole."""
    found = CheckpointFolder(run_dir).load()
    assert found is not None
    _, tensors, header = found
    assert torch.equal(tensors["a"], torch.full_like(tensors["a"], float(header.step)))
    return header.step


# --- killed while writing -----------------------------------------------------------------------

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


# --- disks that refuse --------------------------------------------------------------------------


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    undo = mounted(folder, "size=512k", "nr_inodes=40")
    yield folder
    undo()


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


def test_a_training_on_a_full_disk_is_resumed_where_it_was_saved(
    small_disk: Path, tmp_path: Path
) -> None:
    """The disk runs full at one of many moments; old checkpoints load, and nothing is lost."""
    make_trainer(tmp_path / "whole").run()
    run_dir = small_disk / "run"
    ballast = small_disk / "ballast"
    for batch in range(0, 40, 5):

        def run_full(number: int, batch: int = batch) -> None:
            if number == batch:
                fill(small_disk, leave=4 * KIB * (batch % 2))

        trainer = make_trainer(run_dir, loader=TinyLoader(on_batch=run_full))
        trainer.loggers = [PatientLogger(logger) for logger in trainer.loggers]
        with pytest.raises(
            CheckpointError, match=r"No space left.*bytes are free there; make room"
        ):
            trainer.run(resume=True)
        if CheckpointFolder(run_dir).exists():
            assert CheckpointFolder(run_dir).load() is not None
        ballast.unlink()
    assert make_trainer(run_dir).run(resume=True).status == "finished"
    for name in ("last.safetensors", "best.safetensors", "final.safetensors"):
        assert (run_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_weights_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "best.safetensors"
    save_weights(path, {"a": torch.ones(100)}, {})
    fill(small_disk)
    with pytest.raises(CheckpointError, match=r"best\.safetensors: cannot write .*make room"):
        save_weights(path, {"a": torch.zeros(30_000)}, {})
    assert torch.equal(load_weights(path)[0]["a"], torch.ones(100))


def test_a_disk_without_inodes(small_disk: Path, header: Header) -> None:
    folder = CheckpointFolder(small_disk)
    save(folder, header, 1)
    for number in range(100):
        try:
            (small_disk / str(number)).touch()
        except OSError:
            break
    with pytest.raises(CheckpointError, match=r"No space left.*all inodes are used"):
        save(folder, header, 2)
    assert loaded_step(small_disk) == 1


@pytest.fixture
def read_only_disk(tmp_path: Path, header: Header) -> Iterator[Path]:
    """A disk with a checkpoint of step 1 and metrics, mounted anew without the right to write."""
    folder = tmp_path / "disk"
    folder.mkdir()
    undo = mounted(folder, "size=512k")
    save(CheckpointFolder(folder), header, 1)
    JsonlLogger(folder / "metrics.jsonl").log(train(1))
    remount = ["mount", "-o", "remount,ro", str(folder)]
    done = subprocess.run(remount, capture_output=True, check=False)
    if done.returncode != 0:
        undo()
        pytest.skip("remounting needs root")
    yield folder
    undo()


def test_a_read_only_disk(read_only_disk: Path, header: Header) -> None:
    with pytest.raises(CheckpointError, match=r"last\.s.*Read-only.*mount it for writing") as error:
        save(CheckpointFolder(read_only_disk), header, 2)
    assert "choose another output folder" in str(error.value)
    assert loaded_step(read_only_disk) == 1
    # Before a training begins, its metrics file must be writable.
    logger = PatientLogger(JsonlLogger(read_only_disk / "metrics.jsonl"))
    with pytest.raises(OSError, match=r"Read-only file system: .*metrics\.jsonl"):
        logger.rewind(1, 0)
    with pytest.raises(OSError, match=r"Read-only file system: .*new"):
        make_trainer(read_only_disk / "new").run()


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match=r"exists: .*run"):
        make_trainer(tmp_path / "run").run()
    with pytest.raises(CheckpointError, match=r"Not a directory: .*run is no folder"):
        save_weights(tmp_path / "run" / "w.safetensors", {"a": torch.ones(1)}, {})


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, r"[\d,]+ bytes are free there; make room, or choose another output folder"),
        (errno.EDQUOT, "quota there is used up; remove files"),
        (errno.EACCES, "the right to write in "),
        (errno.EPERM, "the right to write in "),
        (errno.EIO, "dmesg"),
        (errno.ENAMETOOLONG, "mend that, or choose another output folder"),
    ],
)
def test_advice(tmp_path: Path, number: int, advice: str) -> None:
    assert re.search(advice, how_to_mend(OSError(number, "text"), tmp_path))


def test_advice_without_a_folder_to_look_at(tmp_path: Path) -> None:
    assert "nothing is known" in how_to_mend(OSError(errno.ENOSPC, "full"), tmp_path / "gone")
    assert how_to_mend(OSError(errno.ENOENT, "no"), tmp_path / "gone").startswith(
        f"{tmp_path / 'gone'} is no folder"
    )


# --- metrics on a full disk ---------------------------------------------------------------------


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


# --- clocks -------------------------------------------------------------------------------------


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
