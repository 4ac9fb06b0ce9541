"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


class PeakMemory:
    """The most memory that was in use, since this was made or `restart` was called.

    On a GPU that is what torch's allocator gave to tensors. Elsewhere it is the resident memory of
    this process above what it was when this was made, which Linux alone tells.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _resident("VmRSS") or 0
        self.restart()

    def restart(self) -> None:
        """Forget the peak, not what was in use at the very start."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        # Where that is not allowed (or no Linux), the peak is that of the process's whole life.
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")

    def peak(self) -> int | None:
        """In bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        most = _resident("VmHWM")
        return None if most is None else max(0, most - self._before)


def _resident(key: str) -> int | None:
    """Resident memory of this process in bytes: "VmRSS" as it is, "VmHWM" the most that it was."""
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None
