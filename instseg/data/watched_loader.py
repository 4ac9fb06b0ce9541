"""Torch's loader, under watch: its workers may die or hang without an end to the training."""

from __future__ import annotations

import atexit
import logging
import multiprocessing.connection
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Sampler

from instseg.data.sampling import SampleKey
from instseg.data.worker_faults import (
    WorkerError,
    WorkerFault,
    WorkerTable,
    find_dead,
)
from instseg.data.worker_start import start_method, start_workers
from instseg.data.worker_watch import HangWatch, raising_on_death, watch_children

_log = logging.getLogger(__name__)

MAX_FAULTS = 3
"""A sample that ends its worker this often ends the training; so do as many faults in a row."""

MakeLoader = Callable[[Sampler[list[SampleKey]], WorkerTable], "DataLoader[Any]"]


class WatchedLoader:
    """Runs of batches through worker processes, which are replaced when they die or hang.

    What a batch holds is a function of its keys alone. So after a fault new workers begin at the
    first batch that was not given out, and the run goes on as if nothing had been.

    Args:
        make_loader: a torch loader with ``persistent_workers`` over a batch sampler, whose workers
            keep the table.
        num_workers: its worker processes, at least 1.
        name: of a sample, for messages.
        on_fault: "stop" raises at the first fault, "restart" starts new workers.
        timeout: seconds without any change in any worker, while a batch is waited for, after which
            they count as hung; None waits for good.
    """

    def __init__(
        self,
        make_loader: MakeLoader,
        num_workers: int,
        *,
        name: Callable[[SampleKey], str],
        on_fault: Literal["stop", "restart"] = "stop",
        timeout: float | None = None,
    ) -> None:
        self._make_loader = make_loader
        self._num_workers = num_workers
        self._name = name
        self._restarts = on_fault == "restart"
        self._timeout = timeout
        self._pool: _Pool | None = None
        self.runs = 0
        """Runs begun; the latest has the workers."""

    def run(self, batches: Sequence[list[SampleKey]]) -> Iterator[Any]:
        """The items of ``batches``, in order; what ran before ends.

        Raises:
            WorkerError: (while iterating) a worker died or hung and ``on_fault`` is "stop", or it
                happened `MAX_FAULTS` times at one sample, or as often with no batch in between.
        """
        return _Run(self, batches)

    def start(self, batches: Sequence[list[SampleKey]]) -> Iterator[Any]:
        """One pass of the workers over ``batches``; they are started if there are none."""
        if self._pool is None:
            self._pool = _Pool(self._make_loader, self._num_workers, self._timeout)
        with self._pool.watched():
            return self._pool.start(batches)

    def next(self, items: Iterator[Any]) -> Any:
        """The next of the items of `start`."""
        assert self._pool is not None
        with self._pool.watched():
            return next(items)

    def end_faulty(self) -> list[WorkerFault]:
        """End all workers if one of them is dead or hung; says which."""
        faults = [] if self._pool is None else self._pool.faults()
        if faults:
            assert self._pool is not None
            self._pool.kill()
            self._pool = None
        return faults

    def judge(self, faults: Sequence[WorkerFault], counts: Counter[SampleKey | None]) -> None:
        """Go on after ``faults``, or raise `WorkerError`.

        Args:
            faults: what happened now.
            counts: faults of this run by sample; under None those since the last batch.
        """
        counts[None] += 1
        blamed = {fault.key for fault in faults if not fault.is_excused}
        counts.update(key for key in blamed if key is not None)
        what = "; ".join(fault.describe(self._name) for fault in faults)
        if not self._restarts and not all(fault.is_excused for fault in faults):
            raise WorkerError(
                f"{what}. What was saved is untouched: mend the cause and resume, or set "
                "data.on_worker_fault to restart"
            )
        for fault in faults:
            if fault.key is not None and counts[fault.key] >= MAX_FAULTS:
                raise WorkerError(
                    f"{what}. {self._name(fault.key)} has ended its worker {MAX_FAULTS} times: "
                    "mend the file or take it out of the annotations, then resume"
                )
        if counts[None] >= MAX_FAULTS:
            raise WorkerError(
                f"{what}. That was fault {MAX_FAULTS} without a batch in between: mend the cause, "
                "then resume"
            )
        _log.warning("%s; starting new workers", what)


class _Run(Iterator[Any]):
    """The items of some batches, across faults."""

    def __init__(self, loader: WatchedLoader, batches: Sequence[list[SampleKey]]) -> None:
        loader.runs += 1
        self._number = loader.runs
        self._loader = loader
        self._batches = batches
        self._given = 0
        self._faults: Counter[SampleKey | None] = Counter()
        self._items: Iterator[Any] | None = None
        self._attempt(self._start)  # at once: the workers prepare while others get ready

    def __next__(self) -> Any:
        while self._number == self._loader.runs:
            if self._items is None:
                self._attempt(self._start)
            elif self._attempt(self._take):
                return self._item
        raise StopIteration  # another run has the workers now

    def _start(self) -> None:
        self._items = self._loader.start(self._batches[self._given :])

    def _take(self) -> None:
        assert self._items is not None
        self._item = self._loader.next(self._items)
        self._given += 1
        self._faults[None] = 0

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether the action succeeded; if not, a worker's fault was dealt with."""
        try:
            action()
            return True
        # Torch's own report of a death, or what becomes of a connection to the dead.
        except (RuntimeError, OSError, EOFError) as error:
            faults = self._loader.end_faulty()
            if not faults:
                raise
            self._items = None
            try:
                self._loader.judge(faults, self._faults)
            except WorkerError as verdict:
                raise verdict from error
            return False


class _Pool:
    """A torch loader, its workers, and what they are at."""

    def __init__(self, make_loader: MakeLoader, num_workers: int, timeout: float | None) -> None:
        self._batches = _Batches()
        self._table = WorkerTable(num_workers)
        self._loader = make_loader(self._batches, self._table)
        self._workers: list[BaseProcess] = []
        self._hang: HangWatch | None = None
        if timeout is not None:
            self._hang = HangWatch(self._workers, self._table, timeout)
            weakref.finalize(self, self._hang.stop)

    def start(self, batches: Sequence[list[SampleKey]]) -> Iterator[Any]:
        self._batches.batches = batches
        if self._workers:
            return iter(self._loader)
        items: Any = start_workers(self._loader)
        # The registered workers' deaths raise in whatever the main thread does at that moment.
        _remove_worker_pids(id(items))
        items._worker_pids_set = False
        self._workers += items._workers
        watch_children()
        _pools.add(self)
        return items

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a worker that is dead, or dies, raises; one that hangs is killed."""
        with raising_on_death(self._workers):
            if self._hang is None:
                yield
            else:
                with self._hang.waiting():
                    yield

    def faults(self) -> list[WorkerFault]:
        """The workers that are hung or dead, those included that end within a second."""
        if self._hang is not None and self._hang.found:
            return self._hang.found
        ending = multiprocessing.connection.wait([w.sentinel for w in self._workers], timeout=1)
        for worker in self._workers:
            if worker.sentinel in ending:  # its files are closed, but its status may not be known
                worker.join(timeout=5)
        return find_dead(self._workers, self._table, start_method(self._loader))

    def kill_workers(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._workers:
            worker.kill()

    def kill(self) -> None:
        """End all workers, and torch's loader of them."""
        self.kill_workers()
        items: Any = self._loader._iterator
        # Locks that a killed worker held are never released, which this may wait for.
        end = threading.Thread(target=items._shutdown_workers, daemon=True)
        end.start()
        end.join(timeout=15)


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()
os.register_at_fork(after_in_child=_pools.clear)


@atexit.register
def _kill_workers() -> None:
    """At its end Python asks the workers to end by SIGTERM, and waits for them.

    One that is starting may have it blocked, and one from others be pending, which hides it.
    """
    for pool in _pools:
        pool.kill_workers()


class _Batches(Sampler[list[SampleKey]]):
    """What the next pass runs through: torch's loader keeps its batch sampler for life."""

    def __init__(self) -> None:
        self.batches: Sequence[list[SampleKey]] = ()

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
