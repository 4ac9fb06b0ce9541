"""Disks that are full, read-only or without inodes: named, and nothing saved is lost."""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from instseg.engine.checkpoint import CheckpointFolder, Header
from instseg.engine.disk import how_to_mend
from instseg.engine.errors import CheckpointError
from instseg.engine.loggers import JsonlLogger
from instseg.engine.patient_logger import PatientLogger
from instseg.engine.weights import load_weights, save_weights

from .disks import KIB, fill, loaded_step, mounted, save
from .test_loggers import train
from .tiny import TinyLoader, make_trainer


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
