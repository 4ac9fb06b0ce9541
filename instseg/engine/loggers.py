"""Metrics as files: JSON lines for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from instseg.engine.atomic import write_file_atomic
from instseg.engine.protocols import Row

_log = logging.getLogger(__name__)


class JsonlLogger:
    """One JSON object a line; a number that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int, epoch: int) -> None:
        """Drop the rows after ``step`` updates and ``epoch`` epochs, and a line cut short."""
        lines = _whole_lines(self.path)
        kept = [line for line in lines if _is_before(self.path, _parse_json(line), step, epoch)]
        if self.path.exists():
            write_file_atomic(self.path, "".join(kept).encode())

    def log(self, row: Row) -> None:
        """Append one row."""
        finite = {key: _finite_or_none(value) for key, value in row.items()}
        _append(self.path, json.dumps(finite, allow_nan=False) + "\n")

    def close(self) -> None:
        """Nothing to do: each row is written at once."""


class CsvLogger:
    """One table for rows of all kinds, with empty cells where a row lacks a column.

    Columns keep their place; a new key adds one at the right, for which the file is rewritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []

    def rewind(self, step: int, epoch: int) -> None:
        """Drop the rows after ``step`` updates and ``epoch`` epochs, and a line cut short."""
        columns, rows = self._read()
        kept = [row for row in rows if _is_before(self.path, row, step, epoch)]
        self._columns = columns if kept else []
        if self.path.exists():
            write_file_atomic(self.path, _csv_text(self._columns, kept).encode())

    def log(self, row: Row) -> None:
        """Append one row, with new columns if it has new keys."""
        finite = {key: _finite_or_none(value) for key, value in row.items()}
        new = [key for key in finite if key not in self._columns]
        if new:
            _, rows = self._read()
            columns = self._columns + new
            write_file_atomic(self.path, _csv_text(columns, [*rows, finite]).encode())
            self._columns = columns
        else:
            _append(self.path, _csv_text(self._columns, [finite], header=False))

    def close(self) -> None:
        """Nothing to do: each row is written at once."""

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        reader = csv.DictReader(_whole_lines(self.path))
        rows = list(reader)
        return list(reader.fieldnames or []), rows


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file with their ends; a last one without end was cut short by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _is_before(path: Path, row: Any, step: int, epoch: int) -> bool:
    """Whether a row was logged by the time ``step`` updates and ``epoch`` epochs were done.

    A score belongs to the end of its epoch, which comes after the epoch's last step.
    """
    try:
        is_late_score = row["kind"] == "eval" and int(row["epoch"]) > epoch
        return int(row["step"]) <= step and not is_late_score
    except (KeyError, TypeError, ValueError):
        _log.warning("%s: dropped a line that is no row of metrics: %.80r", path, row)
        return False


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_text(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    """Add whole lines to a file; a disk that is full leaves it as it was."""
    try:
        with open(path, "ab", buffering=0) as file:
            length = file.tell()
            data = text.encode()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with suppress(OSError):  # of what is no plain file
                    file.truncate(length)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
