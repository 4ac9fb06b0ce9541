"""What notices that a worker of a loader has died or hangs, while the training waits for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

from instseg.data.worker_faults import WorkerFault, WorkerTable, find_hung


class HangWatch:
    """A thread that kills workers which get no further, so that a hang ends as a death does.

    Torch's own ``timeout`` is one of the whole batch, and does not run while a message of a hung
    worker is being read.
    """

    def __init__(self, workers: list[BaseProcess], table: WorkerTable, timeout: float) -> None:
        self.found: list[WorkerFault] = []
        self._workers = workers
        self._table = table
        self._timeout = timeout
        self._waits = 0
        self._is_waited_for = False
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the training waits for the workers."""
        self._waits += 1
        self._is_waited_for = True
        try:
            yield
        finally:
            self._is_waited_for = False

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    def _watch(self) -> None:
        interval = min(1.0, self._timeout / 4)
        before, quiet = (-1, -1), 0.0
        # Counted in naps, not by a clock: a machine that was suspended is no hang.
        while not self._stop.wait(interval):
            now = (self._waits, self._table.changes())
            quiet = quiet + interval if now == before and self._is_waited_for else 0.0
            before = now
            if quiet >= self._timeout and self._workers:
                self.found = find_hung(self._workers, self._table, self._timeout)
                for worker in self._workers:
                    worker.kill()
                return


class WorkerDiedError(RuntimeError):
    """Raised in the main thread, out of its waiting for a batch."""


_waited_for: Sequence[BaseProcess] = ()
_handler_is_set = False


@contextmanager
def raising_on_death(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, a worker that is dead raises `WorkerDiedError`; one that dies does, if it can.

    See `watch_children`.
    """
    global _waited_for
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:  # the handler raises there alone, which other threads' workers do not concern
        _waited_for = workers
    try:
        _raise_if_dead(workers)
        yield
    finally:
        if is_main:
            _waited_for = ()


def _raise_if_dead(workers: Sequence[BaseProcess]) -> None:
    if any(not worker.is_alive() for worker in workers):
        raise WorkerDiedError("a worker of the loader has died")


def watch_children() -> None:
    """Let the death of a child interrupt the main thread, where it waits for that child.

    Where this cannot be (in other threads, and with a fork server, whose children they are), torch
    looks after the workers every 5 s.
    """
    global _handler_is_set
    if _handler_is_set or threading.current_thread() is not threading.main_thread():
        return
    _handler_is_set = True
    previous = signal.getsignal(signal.SIGCHLD)

    def handle(number: int, frame: FrameType | None) -> None:
        _raise_if_dead(_waited_for)
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGCHLD, handle)
