"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def write_file_atomic(path: Path, data: bytes, keep_old_as: Path | None = None) -> None:
    """Replace ``path`` by ``data`` so that a kill or a full disk at any moment loses nothing.

    The bytes go to a temporary file in the same folder, reach the disk, and only then take the
    name. A temporary file that a killed process left is overwritten by the next call.

    Args:
        path: the file to write; its folder exists.
        data: the whole content.
        keep_old_as: in the same folder; what stood at ``path`` gets this name instead of vanishing.

    Raises:
        OSError: the disk is full or the folder is not writable; it names ``path``, which is
            untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path, keep_old_as)
    except BaseException as error:
        with suppress(OSError):  # of a read-only file system
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of a full disk the system's own text names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_folder(path.parent)


def _rename(temporary: Path, path: Path, keep_old_as: Path | None) -> None:
    if keep_old_as is None or not path.exists():
        os.replace(temporary, path)
        return
    os.replace(path, keep_old_as)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(keep_old_as, path)
        raise


def fsync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(descriptor)
