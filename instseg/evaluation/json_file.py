"""JSON files: read with errors that say where, written so that no reader sees half a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path, error: type[ValueError]) -> Any:
    """Parse the file.

    Raises:
        error: the file is not JSON in UTF-8, or is cut short; the message gives file, line, column.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise error(
            f"{path}: not valid JSON at line {e.lineno}, column {e.colno} ({e.msg}); "
            "the file may have been cut short: write or copy it again"
        ) from e
    except UnicodeDecodeError as e:
        raise error(f"{path}: not UTF-8 text (byte {e.start}), so not a JSON file") from e
    except RecursionError as e:
        raise error(f"{path}: JSON nested too deeply") from e
    except ValueError as e:  # an integer of thousands of digits
        raise error(f"{path}: cannot be read as JSON: {e}") from e


def write_json(value: Any, path: Path, *, indent: int | None = None) -> None:
    """Write ``value`` beside ``path`` and move it there, making the folder if need be.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON does not have.
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    text = json.dumps(value, indent=indent, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
