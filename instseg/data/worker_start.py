"""The start of worker processes, which signals to all processes of a job must not disturb.

Ctrl-C, torchrun, batch systems and service managers signal every process of a training. A worker
knows what to make of that when its own code runs (`init_worker`), but a new interpreter takes
seconds to get there, and the threads that libraries start on the way never know.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from torch.utils.data import DataLoader

# Without torch, so that the fork server gets to it at once; then what saves workers their imports.
_PRELOAD = ["instseg.data.worker_server", "instseg.data.loader"]


def start_method(loader: DataLoader[Any]) -> str:
    """How the workers of ``loader`` are made: "fork", "spawn" or "forkserver"."""
    context = loader.multiprocessing_context or multiprocessing
    return str(context.get_start_method())


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The first pass over ``loader``, which starts its workers."""
    method = start_method(loader)
    if method == "forkserver":
        # The server may make other processes too, which would all inherit what is blocked here.
        multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOAD)
        for _ in range(3):
            try:
                return iter(loader)
            except (EOFError, ConnectionError):  # a server that was ended before it blocked signals
                time.sleep(0.2)  # it is replaced when the system has counted it out
        return iter(loader)
    if method == "spawn":
        resource_tracker.ensure_running()  # its own start would end the block
    with _held_back():
        return iter(loader)


@contextmanager
def _held_back() -> Iterator[None]:
    """Processes that are started inside have SIGINT and SIGTERM blocked in all their threads."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
