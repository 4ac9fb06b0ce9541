"""A pass over a tar file that trusts nothing in it.

The standard library parses the headers; what they declare is checked here before memory is taken.
Source: POSIX.1-2001, pax (ustar interchange format and its extended headers).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from instseg.data.shards.errors import ShardError

MAX_MEMBER = 2**30
"""The largest member that is read, in bytes: as many as the largest image has in memory."""

BLOCK = tarfile.BLOCKSIZE
_EXTENDED = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)  # headers about the header that follows
_MAX_HEADERS = 2**16
_MAX_NAME = 255
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """A regular file in a tar.

    Args:
        name: its path, relative, with forward slashes.
        offset: where its content begins, in bytes.
        content: all of it.
    """

    name: str
    offset: int
    content: bytes


class TarPass:
    """One pass over a tar from a file or a stream.

    Args:
        file: read from its current position, which counts as offset 0.
        shard: the tar's name, for errors.

    Attributes:
        size: bytes passed so far.
    """

    def __init__(self, file: IO[bytes], shard: str) -> None:
        self.size = 0
        self._file = file
        self._shard = shard
        self._hash = hashlib.sha256()

    def members(self) -> Iterator[Member]:
        """The regular files in order; folders are passed over.

        Raises:
            ShardError: cut short, damaged, a name that leaves the folder, a name given twice, a
                member that is neither file nor folder, or one of more than `MAX_MEMBER` bytes.
        """
        seen: set[str] = set()
        last = ""
        while True:
            info = self._header(after=last)
            if info is None:
                break
            last = info.name
            if info.isdir():
                continue
            name = self._checked_name(info)
            if name in seen:
                raise self._error("is there twice; give each file a name of its own", name)
            seen.add(name)
            offset = self.size
            content = self._take(info.size, name)
            self._take(-info.size % BLOCK, name)
            yield Member(name, offset, content)
        while chunk := self._file.read(_CHUNK):  # tar pads its end
            self._count(chunk)

    def sha256(self) -> str:
        """The hash of all bytes passed, as hexadecimal digits."""
        return self._hash.hexdigest()

    def _header(self, after: str) -> tarfile.TarInfo | None:
        """The header of the next member; None at the end of the archive."""
        headers = b""
        while True:
            where = f"the header after {after}" if after else "the first header"
            block = self._take(BLOCK, after)
            if not headers and block == bytes(BLOCK):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
                headers += block
                if info.type not in _EXTENDED:
                    return info if len(headers) == BLOCK else _parse(headers)
            except (tarfile.TarError, ValueError, EOFError) as error:
                raise self._error(f"{where} is damaged ({error}): is it a tar file?") from error
            if not 0 <= info.size <= _MAX_HEADERS - len(headers):
                raise self._error(f"{where} has {info.size} bytes of extended header")
            headers += self._take(info.size + -info.size % BLOCK, after)

    def _checked_name(self, info: tarfile.TarInfo) -> str:
        path = PurePosixPath(info.name)
        name = path.as_posix()
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise self._error("its name does not stay in the folder; rename it", repr(info.name))
        if len(name.encode()) > _MAX_NAME:
            raise self._error(f"its name is longer than {_MAX_NAME} bytes", name)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
            kind = "a link" if info.islnk() or info.issym() else "no plain file"
            raise self._error(f"is {kind}; shards hold plain files alone", name)
        if not 0 <= info.size <= MAX_MEMBER:
            raise self._error(f"declares {info.size} bytes; the limit is {MAX_MEMBER}", name)
        return name

    def _take(self, count: int, member: str) -> bytes:
        """Exactly ``count`` bytes, in pieces: a declared size takes no memory by itself."""
        pieces = []
        left = count
        while left > 0:
            piece = self._file.read(min(left, _CHUNK))
            if not piece:
                raise self._error(
                    f"the tar is cut short at byte {self.size}; copy or write it again", member
                )
            self._count(piece)
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    def _error(self, reason: str, member: str = "") -> ShardError:
        return ShardError(self._shard, reason, member)


def _parse(headers: bytes) -> tarfile.TarInfo:
    """The header of a member together with the extended headers before it."""
    with tarfile.open(fileobj=io.BytesIO(headers), mode="r:") as archive:
        info = archive.next()
    if info is None:
        raise tarfile.ReadError("no header follows the extended one")
    return info
