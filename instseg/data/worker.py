"""A worker process of a loader: its settings, and its end with the process it works for."""

from __future__ import annotations

import gc
import os
import signal
import time
from threading import Thread

import cv2
import torch

from instseg.data.worker_faults import WorkerTable

_KNOWS_SENDERS = hasattr(signal, "sigtimedwait")  # of signals; not on macOS


def init_worker(owner: int, table: WorkerTable, worker_id: int) -> None:
    """Set a new worker up; torch calls it there.

    Args:
        owner: the process id of the training.
        table: where the worker notes what it is at.
        worker_id: its number in the loader.
    """
    # A collection would write to all the memory that is shared with the parent, and so copy it.
    gc.freeze()
    # One thread: workers are the parallelism, and share the machine with the model.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Ctrl-C goes to every process of a terminal, and batch systems send SIGTERM to all of a job.
    # Both are for the training process, which finishes its step, saves and ends its workers.
    # (`start_workers` may have blocked them, so that they do not come before this.)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the training's workers are not this one's
    signal.pthread_sigmask(
        signal.SIG_BLOCK if _KNOWS_SENDERS else signal.SIG_UNBLOCK, {signal.SIGTERM}
    )
    Thread(target=_end_with, args=(owner,), daemon=True).start()
    table.end(worker_id)


def _end_with(owner: int, seconds: float = 2.0) -> None:
    """End this worker when the process ``owner`` is gone, or when it asks for that by SIGTERM.

    Torch's workers watch their parent, which under "forkserver" (the default from Python 3.14 on)
    is not the training process: one that was killed would leave its workers behind for good.
    """
    while True:
        try:
            os.kill(owner, 0)
        except (ProcessLookupError, PermissionError):  # gone, or its number is another's now
            os._exit(1)
        if _terminated_by(owner, seconds):
            os._exit(0)


def _terminated_by(owner: int, seconds: float) -> bool:
    """Whether ``owner`` sends SIGTERM within ``seconds``; those of other processes do not count."""
    if not _KNOWS_SENDERS:
        time.sleep(seconds)
        return False
    received = signal.sigtimedwait({signal.SIGTERM}, seconds)
    return received is not None and received.si_pid == owner
