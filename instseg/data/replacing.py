"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` at the end; after an error it is gone.

    Raises:
        OSError: it cannot be written; ``path`` is as before.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def keep_file(path: Path, content: bytes) -> None:
    """Make ``path`` have that content; where it has it already, the file and its folder stay.

    Raises:
        OSError: it cannot be written.
    """
    if not path.is_file() or path.read_bytes() != content:
        with replacing(path) as file:
            file.write(content)
