"""What a person sees of a training: one live line on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instseg.engine.protocols import Row

_log = logging.getLogger(__name__)


class ProgressView(Protocol):
    """A context that shows a training's course."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def start(self, step: int, total_steps: int) -> None:
        """Training begins, or goes on, at ``step``."""

    def step(self, row: Row) -> None:
        """A step was taken; ``row`` holds the figures since the last logged row."""

    def logged(self, row: Row) -> None:
        """A row was logged."""


def make_progress(console: Console | None = None) -> ProgressView:
    """A bar if ``console`` (default: stderr) is a terminal, log lines if not."""
    console = console or Console(stderr=True)
    return BarProgress(console) if console.is_terminal else LineProgress()


class BarProgress:
    """One line that keeps itself up to date; scores are printed above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, step: int, total_steps: int) -> None:
        """Show the bar at ``step``."""
        self._task = self._bar.add_task(
            "train", total=total_steps, completed=step, epoch="-", figures=""
        )

    def step(self, row: Row) -> None:
        """Move the bar and renew its figures."""
        self._bar.update(
            self._task, completed=row["step"], epoch=row["epoch"], figures=describe(row)
        )

    def logged(self, row: Row) -> None:
        """Print scores; training rows are what the bar shows anyway."""
        if row["kind"] == "eval":
            self._console.print(f"epoch {row['epoch']}: {describe(row)}", highlight=False)


class NoProgress:
    """Nothing: one process of a group speaks for all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def start(self, step: int, total_steps: int) -> None:
        """Training begins, or goes on, at ``step``."""

    def step(self, row: Row) -> None:
        """A step was taken; ``row`` holds the figures since the last logged row."""

    def logged(self, row: Row) -> None:
        """A row was logged."""


class LineProgress(NoProgress):
    """A log line for every logged row."""

    def start(self, step: int, total_steps: int) -> None:
        """Note where the clock for the remaining time starts."""
        self._first_step = step
        self._total_steps = total_steps
        self._started = time.monotonic()

    def logged(self, row: Row) -> None:
        """One line: the place, the figures, and the remaining time."""
        eta = ""
        if row["kind"] == "train" and row["step"] > self._first_step:
            pace = (time.monotonic() - self._started) / (row["step"] - self._first_step)
            eta = f", ETA {_duration(pace * (self._total_steps - row['step']))}"
        place = f"epoch {row['epoch']}, step {row['step']}/{self._total_steps}"
        _log.info("%s: %s%s", place, describe(row), eta)


def describe(row: Mapping[str, Any]) -> str:
    """A row's figures, short enough for one line of 80 characters with the bar's other columns."""
    if row["kind"] == "eval":
        scores = {k: v for k, v in row.items() if k not in ("kind", "step", "epoch")}
        return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    formats = {
        "loss": "loss {:.4g}",
        "lr": "lr {:.3g}",
        "images_per_second": "{:.1f} img/s",
        "data_wait": "wait {:.0%}",
    }
    return " ".join(text.format(row[key]) for key, text in formats.items() if key in row)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
