"""SIGINT and SIGTERM as a request to stop after the step in course."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_log = logging.getLogger(__name__)


class StopSignals:
    """A context in which the first SIGINT, and any SIGTERM, only sets `requested`.

    A SIGINT after either raises KeyboardInterrupt at once. Leaving restores the handlers that there
    were. Outside the main thread, where Python allows no handlers, the context does nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        self.requested = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that C code installed and Python cannot put back.
            signal.signal(number, handler or signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.requested is None  # torchrun, for one, sends on what all have got
        self.requested = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Forked processes inherit this handler; a Ctrl-C reaches them too.
        if is_first and os.getpid() == self._pid:
            _log.warning(
                "%s: finishing this step, then saving; Ctrl-C aborts at once", self.requested.name
            )
