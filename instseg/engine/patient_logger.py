"""Metrics that cannot be written now: a full disk is no reason to end a training."""

from __future__ import annotations

import logging
from pathlib import Path

from instseg.engine.disk import how_to_mend
from instseg.engine.protocols import MetricLogger, Row

_log = logging.getLogger(__name__)


class PatientLogger:
    """Keeps the rows that ``logger`` cannot write, and hands them over when it can again.

    Weights are another matter: a checkpoint that cannot be written ends the training.

    Args:
        logger: raises OSError for a row it cannot write, and is then as before that row.
    """

    def __init__(self, logger: MetricLogger) -> None:
        self._logger = logger
        self._waiting: list[Row] = []

    def rewind(self, step: int, epoch: int) -> None:
        """See ``logger``; what fails here fails before the training has begun.

        Raises:
            OSError: a file cannot be read or written.
        """
        self._logger.rewind(step, epoch)

    def log(self, row: Row) -> None:
        """Write the row and those that wait, or keep it; warns at the first that is kept."""
        self._waiting.append(row)
        count = len(self._waiting)
        if count & (count - 1) == 0:  # 1, 2, 4, 8, ... rows: more rarely while nothing changes
            self._hand_over()

    def close(self) -> None:
        """Try a last time, then close; rows that are lost are told."""
        self._hand_over()
        if self._waiting:
            _log.warning("%d rows of metrics were never written", len(self._waiting))
        try:
            self._logger.close()
        except OSError as error:
            _log.warning("metrics: %s", _describe(error))

    def _hand_over(self) -> None:
        had_waited = len(self._waiting) > 1
        try:
            while self._waiting:
                self._logger.log(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not had_waited:
                _log.warning(
                    "metrics: %s. The training goes on, and rows are kept until they can be "
                    "written",
                    _describe(error),
                )
        else:
            if had_waited:
                _log.warning("metrics can be written again, and nothing is missing")


def _describe(error: OSError) -> str:
    """The error with its file, and what to do."""
    if error.filename is None:
        return str(error)
    path = Path(error.filename)
    return f"{path}: {error.strerror}: {how_to_mend(error, path.parent)}"
