"""Metrics for TensorBoard; apart from the other loggers because its import is slow."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from instseg.engine.protocols import Row

_PREFIX = "events.out.tfevents."


class TensorBoardLogger:
    """Scalars named ``train/loss``, ``eval/segm/AP``, ... in event files under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def rewind(self, step: int, epoch: int) -> None:
        """Begin a new event file that hides older ones' scalars from after ``step``."""
        self.close()
        self._writer = self._open(purge_step=step + 1)

    def log(self, row: Row) -> None:
        """Add the row's numbers at its step, and write them out.

        Raises:
            OSError: they cannot be written; the next row begins another event file.
        """
        step = int(row["step"])
        try:
            if self._writer is None:
                self._writer = self._open()
            for key, value in row.items():
                if key not in ("kind", "step") and value is not None:
                    self._writer.add_scalar(f"{row['kind']}/{key}", value, step)
            self._writer.flush()
        except OSError as error:
            # Its thread has ended with the error, and writes no more.
            with suppress(OSError):
                self.close()
            raise OSError(error.errno, error.strerror, str(self.folder / "events")) from error

    def close(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        _make_older(self.folder)
        return SummaryWriter(self.folder, purge_step=purge_step)


def _make_older(folder: Path) -> None:
    """Rename event files of this second, and of the future if the clock went back, to before now.

    Their names begin with the second they were made in, and they are read in the names' order (the
    tenth of one second before the ninth): what a new file hides must lie in files before it.
    """
    files = sorted(folder.glob(f"{_PREFIX}*"))
    seconds = [file.name.removeprefix(_PREFIX).partition(".")[0] for file in files]
    now = int(time.time())
    if any(second.isdigit() and int(second) >= now for second in seconds):
        for number, (file, second) in enumerate(zip(files, seconds, strict=True)):
            earlier = f"{now - len(files) + number:010d}"
            file.rename(file.with_name(file.name.replace(second, earlier, 1)))
