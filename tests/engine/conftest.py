"""One thread (equal sums in every process, no contention), a checkpoint's header, a small disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from instseg.engine.checkpoint import Header, read_checkpoint

from .disks import mounted
from .tiny import make_options, make_trainer


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    run_dir = tmp_path_factory.mktemp("run")
    make_trainer(run_dir, options=make_options(epochs=1)).run()
    return read_checkpoint(run_dir / "last.safetensors")[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    undo = mounted(folder, "size=512k", "nr_inodes=40")
    yield folder
    undo()
