"""How far the indexing of a large data set is, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instseg.data.index import OnRecord


@contextmanager
def indexing_bar(source: str) -> Iterator[OnRecord]:
    """A bar on stderr while there is something to wait for; nothing where it is no terminal.

    Args:
        source: the data set, a path as a rule; its last part is shown.
    """
    bar = Progress(
        TextColumn("indexing {task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(Path(source).name, total=None)

    def update(done: int, total: int) -> None:
        if done < total and bar.console.is_terminal:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:  # stopping writes a line in any case
            bar.stop()
