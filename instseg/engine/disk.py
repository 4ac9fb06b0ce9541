"""What a person can do about a file that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_ELSEWHERE = "or choose another output folder and copy the run there"


def how_to_mend(error: OSError, folder: Path) -> str:
    """What to free or change so that files can be written in ``folder``, as half a sentence."""
    match error.errno:
        case errno.ENOSPC:
            return f"{_what_is_free(folder)}; make room, {_ELSEWHERE}"
        case errno.EDQUOT:
            return f"this user's quota there is used up; remove files, {_ELSEWHERE}"
        case errno.EROFS:
            return (
                "the file system is read-only (some are made so after a disk error); mount it for "
                f"writing, {_ELSEWHERE}"
            )
        case errno.EACCES | errno.EPERM:
            return f"give this user the right to write in {folder}, {_ELSEWHERE}"
        case errno.EFBIG:
            return "the limit on a file's size is reached (ulimit -f or the file system's); lift it"
        case errno.ENOENT | errno.ENOTDIR:
            return f"{folder} is no folder, or no longer one; restore it"
        case errno.EIO | errno.ESTALE:
            return "the disk or its network fails; see the system's log (dmesg)"
    return f"mend that, {_ELSEWHERE}"


def _what_is_free(folder: Path) -> str:
    try:
        stats = os.statvfs(folder)
    except OSError:
        return "nothing is known of the space there"
    if stats.f_files > 0 and stats.f_favail == 0:  # f_files: 0 where there is no such limit
        return "no more files fit there (all inodes are used), however small"
    return f"{stats.f_bavail * stats.f_frsize:,} bytes are free there"
