"""Metrics for TensorBoard; apart from the other loggers because its import is slow."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from instseg.engine.protocols import Row


class TensorBoardLogger:
    """Scalars named ``train/loss``, ``eval/segm/AP``, ... in event files under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def rewind(self, step: int, epoch: int) -> None:
        """Begin a new event file that hides older ones' scalars from after ``step``."""
        self.close()
        self._writer = SummaryWriter(self.folder, purge_step=step + 1)

    def log(self, row: Row) -> None:
        """Add the row's numbers at its step, and write them out."""
        if self._writer is None:
            self.rewind(0, 0)
        assert self._writer is not None
        for key, value in row.items():
            if key not in ("kind", "step") and value is not None:
                self._writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
