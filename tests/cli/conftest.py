"""A generated data set and one training on it, shared by the commands' tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from instseg.cli import train
from instseg.data.synthetic import generate_shapes

from . import cells as cells_data
from .tiny import write_config


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Sums differ in their last bits with the number of threads, and runs are compared bit by bit.

    `shapes` and `trained` are of the same scope: wider ones would be made before this.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines are not wrapped, and the handlers that a command installs go with the test."""
    monkeypatch.setenv("COLUMNS", "1000")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="package")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and six validation images of 64 x 64; only to be read."""
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(root / "train", images=8, size=(64, 64), seed=0, max_objects=6)
    generate_shapes(root / "val", images=6, size=(64, 64), seed=1, max_objects=6)
    return root


@pytest.fixture
def config(tmp_path: Path, shapes: Path) -> Path:
    """The tiny configuration as a file."""
    return write_config(tmp_path, shapes)


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """The folder of a finished run of the tiny configuration, beside its file; only to be read."""
    folder = tmp_path_factory.mktemp("trained")
    argv = ["--config", str(write_config(folder, shapes)), "--output", str(folder / "run")]
    assert train.main(argv) == 0
    return folder / "run"


@pytest.fixture(scope="package")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train and three to validate; only to be read."""
    root = tmp_path_factory.mktemp("cells")
    for i in range(4):
        cells_data.write_cells(root, f"train{i}", i)
    for i in range(3):
        cells_data.write_cells(root, f"val{i}", 10 + i)
    return root


@pytest.fixture(scope="package")
def cells_config(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "cells.yaml"
    path.write_text(cells_data.CONFIG.replace("CELLS", str(cells)))
    return path


@pytest.fixture(scope="package")
def unet_run(cells_config: Path) -> Path:
    """The folder of a finished training; only to be read."""
    run = cells_config.parent / "run"
    assert train.main(["--config", str(cells_config), "--output", str(run)]) == 0
    return run
