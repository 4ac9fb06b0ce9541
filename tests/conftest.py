"""Shared fixtures: where real data is, and deterministic seeds."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests side by side share the cores; processes that they start inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("COLUMNS", None)  # of the terminal, by which the commands would wrap lines

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton's kernels run on the CPU then, if it hears of it before torchvision imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no failure.
settings.register_profile("instseg", deadline=None)
settings.load_profile("instseg")

ROOT = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """The folder of real data sets (`INSTSEG_TEST_DATA`, or ../shared/data beside the checkout)."""
    return Path(os.environ.get("INSTSEG_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = data_root()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set INSTSEG_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def yolox_onnx(real_data: Path) -> Path:
    """The published YOLOX-Nano."""
    path = real_data.parent / "weights" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    return path


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
