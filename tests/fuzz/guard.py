"""Watches what a process does besides computing: files, programs, sockets, code from text.

The watch is an audit hook (PEP 578), which cannot be taken away again: install it only in a process
that does nothing else.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_LIBRARIES = tuple(
    {str(ROOT / "instseg"), sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib")}
)
# Their presence alone is a finding: no reader of data starts programs or talks to anyone.
_NEVER = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
_NEVER += ("subprocess.Popen", "socket.", "pickle.find_class", "urllib.Request", "ctypes.dlopen")
# These change or list files; their first arguments are paths.
_TOUCH = ("os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename")
_TOUCH += ("os.rmdir", "os.scandir", "os.symlink", "os.truncate", "os.utime", "shutil.")


class Guard:
    """Collects what is done outside ``root`` while it is watching.

    Reading the installed libraries is allowed, because modules are loaded when first used.

    Args:
        root: the folder in which everything may be done.
        may_read: says of a path elsewhere whether it may be read all the same.
    """

    def __init__(self, root: Path, may_read: Callable[[Path], bool] = lambda path: False) -> None:
        self._root = str(root.resolve())
        self._may_read = may_read
        self._on = False
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what happens inside."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        self._on = False  # what the checks themselves do is no matter
        try:
            if not self._allowed(event, arguments):
                self.found.append(f"{event}{arguments!r:.300}")
        finally:
            self._on = True

    def _allowed(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            return isinstance(path, int) or self._may_open(os.fsdecode(path), mode, flags)
        if event == "compile":
            source, name = arguments
            # A lone name, as `typing` evaluates annotations, does nothing.
            is_name = isinstance(source, bytes) and source.decode("latin-1").isidentifier()
            return is_name or _is_library(os.fsdecode(name or ""))
        if event == "exec":
            name = arguments[0].co_filename
            return name == "<string>" or _is_library(name)  # a text was compiled first: see above
        if event.startswith(_TOUCH):
            paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            return all(self._is_inside(os.fsdecode(path)) for path in paths) or (
                event in ("os.listdir", "os.scandir") and all(map(_is_library, map(str, paths)))
            )
        return not event.startswith(_NEVER)

    def _may_open(self, path: str, mode: str | None, flags: int) -> bool:
        if self._is_inside(path):
            return True
        reads = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) == 0
        return reads and (_is_library(path) or self._may_read(Path(path)))

    def _is_inside(self, path: str) -> bool:
        return _is_below(os.path.realpath(path), (self._root,))


def _is_library(path: str) -> bool:
    return path.startswith("<frozen ") or _is_below(os.path.abspath(path), _LIBRARIES)


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)
