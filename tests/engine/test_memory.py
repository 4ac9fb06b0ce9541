"""The peak of resident memory around allocations of known size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instseg.engine import memory
from instseg.engine.memory import PeakMemory

MIB = 2**20
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells")


def grow(mib: int) -> None:
    np.full(mib * MIB, 1, np.uint8)


@on_linux
def test_the_peak_is_what_was_taken_and_given_back() -> None:
    measure = PeakMemory(torch.device("cpu"))
    grow(96)
    peak = measure.peak()
    assert peak is not None
    assert 90 * MIB <= peak < 160 * MIB
    measure.restart()
    grow(8)
    later = measure.peak()
    assert later is not None
    assert later < peak - 60 * MIB


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    measure = PeakMemory(torch.device("cpu"))
    assert measure.peak() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_peak_counts_tensors() -> None:
    device = torch.device("cuda")
    kept = torch.zeros(MIB, dtype=torch.uint8, device=device)
    measure = PeakMemory(device)
    torch.zeros(32 * MIB, dtype=torch.uint8, device=device)
    peak = measure.peak()
    assert peak is not None
    assert peak >= 33 * MIB
    measure.restart()
    assert (measure.peak() or 0) <= peak - 32 * MIB
    assert kept.is_cuda
