"""What is known of a worker process that died or hangs: who, how, and at which sample."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch

from instseg.data.sampling import SampleKey


class WorkerError(RuntimeError):
    """A worker process of a loader died or hung, and the loader was not to start another."""


class WorkerTable:
    """What each worker is at, in memory that all processes share.

    Args:
        num_workers: rows; each is written by one worker alone.
    """

    def __init__(self, num_workers: int) -> None:
        # Busy or not, epoch, index, and how many samples were begun and ended.
        self._rows = torch.zeros(num_workers, 4, dtype=torch.int64).share_memory_()

    def begin(self, worker: int, key: SampleKey) -> None:
        """``worker`` starts on a sample."""
        row = self._rows.numpy()[worker]
        row[:] = (1, key.epoch, key.index, row[3] + 1)

    def end(self, worker: int) -> None:
        """``worker`` is done with its sample, or has just begun its life."""
        row = self._rows.numpy()[worker]
        row[0], row[3] = 0, row[3] + 1

    def current(self, worker: int) -> SampleKey | None:
        """What ``worker`` is at, or was when it died; None between two samples.

        Of an image that comes several times in an epoch, its first sample stands for all.
        """
        busy, epoch, index, _ = self._rows[worker].tolist()
        return SampleKey(epoch, index) if busy else None

    def has_begun(self, worker: int) -> bool:
        """Whether ``worker`` was ever ready for samples."""
        return int(self._rows[worker, 3]) > 0

    def changes(self) -> int:
        """How many samples all workers have begun and ended."""
        return int(self._rows[:, 3].sum())


@dataclass(frozen=True)
class WorkerFault:
    """One worker that died or hangs.

    Args:
        worker: its number in the loader, from 0.
        pid: its process.
        what: what became of it.
        key: the sample it was at, None between two samples.
        has_begun: whether it was ever ready for samples.
        is_excused: no sample is to blame, and new workers start whatever the policy: a signal ended
            it before it was ready, or it is lost with the fork server that it came from.
    """

    worker: int
    pid: int | None
    what: str
    key: SampleKey | None
    has_begun: bool = True
    is_excused: bool = False

    def describe(self, name: Callable[[SampleKey], str]) -> str:
        """One sentence; ``name`` gives a sample's file."""
        at = "between two samples" if self.has_begun else "in its start"
        if self.key is not None:
            at = f"while preparing {name(self.key)}"
        return f"data worker {self.worker} (pid {self.pid}) {self.what} {at}"


def find_dead(
    workers: list[BaseProcess], table: WorkerTable, start_method: str
) -> list[WorkerFault]:
    """The workers that have ended; none does so by itself while its loader lives."""
    faults = []
    for number, worker in enumerate(workers):
        code = worker.exitcode
        if code is None:
            continue
        # What multiprocessing says of all that a fork server has made when that is gone.
        is_lost = code == 255 and start_method == "forkserver"
        has_begun = table.has_begun(number)
        faults.append(
            WorkerFault(
                number,
                worker.pid,
                "lost its fork server" if is_lost else _cause(code),
                table.current(number),
                has_begun,
                is_excused=is_lost or (code < 0 and not has_begun),
            )
        )
    return faults


def find_hung(workers: list[BaseProcess], table: WorkerTable, seconds: float) -> list[WorkerFault]:
    """The workers at a sample; all of them where none is (they hang elsewhere, or cannot start)."""
    what = f"got no further for {seconds:g} s (data.worker_timeout)"
    faults = [
        WorkerFault(number, worker.pid, what, table.current(number), table.has_begun(number))
        for number, worker in enumerate(workers)
    ]
    return [fault for fault in faults if fault.key is not None] or faults


_HINTS = {
    signal.SIGKILL: "the system does so where memory runs out: lower data.workers",
    signal.SIGSEGV: "a decoder crashed: the file may be damaged",
    signal.SIGBUS: "shared memory, /dev/shm, may be full: enlarge it or lower data.workers",
}


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit status {exit_code}"
    number = -exit_code
    known = number in set(signal.Signals)
    name = signal.Signals(number).name if known else f"signal {number}"
    hint = f" ({_HINTS[signal.Signals(number)]})" if known and number in _HINTS else ""
    return f"was killed by {name}{hint}"
