"""Where the bytes of a shard come from: a file, a byte range of a remote one, or a download.

Every data set has a local folder in which reading takes place. It is the data set's own, or a
*mirror*: a folder below the cache that holds the indexes, `mirror.json` (where the shards are and
how they are read) and the shards downloaded lately. So the path of an image says all that a worker
process needs, however it was started.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import msgspec
from filelock import FileLock

from instseg.data.replacing import keep_file, replacing
from instseg.data.shards.errors import FetchError, ShardError
from instseg.data.shards.index import cached_table, index_path
from instseg.data.shards.remote import read_range, with_stream

_MIRROR = "mirror.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class Mirror:
    """What a mirror is of.

    Args:
        url: the folder with the shards.
        download: whole shards are downloaded; otherwise byte ranges are read.
        max_bytes: the downloaded shards take no more than this, unless one alone does.
    """

    url: str
    download: bool
    max_bytes: int


def write_mirror(folder: Path, mirror: Mirror) -> None:
    """Say what ``folder`` mirrors. Raises OSError: it cannot be written."""
    keep_file(folder / _MIRROR, msgspec.json.encode(asdict(mirror)))
    _mirror.cache_clear()


def folder_lock(folder: Path) -> FileLock:
    """One process at a time: for building indexes and downloading shards."""
    return FileLock(folder / _LOCK)


def download_path(shard: Path) -> Path:
    """Where the copy of a shard is kept, by the path that the shard has in a mirror.

    In a folder of its own: the mirror's modification time tells `index_cache` of changed images.
    """
    return shard.parent / "downloads" / shard.name


def read_bytes(shard: Path, offset: int, size: int) -> bytes:
    """Bytes of a shard by its local path, wherever it is.

    Raises:
        ShardError: the shard is shorter, or there is none.
        FetchError: its place does not answer.
        OSError: the file cannot be read.
    """
    try:
        data = _read_file(shard, offset, size)
    except FileNotFoundError:
        data = _read_elsewhere(shard, offset, size)
    if len(data) != size:
        raise ShardError(shard, f"is cut short: it ends before byte {offset + size}")
    return data


def _read_elsewhere(shard: Path, offset: int, size: int) -> bytes:
    try:
        mirror = _mirror(shard.parent)
    except FileNotFoundError:
        raise ShardError(shard, "there is no such shard") from None
    url, copy = f"{mirror.url}/{shard.name}", download_path(shard)
    try:
        if not mirror.download:
            return read_range(url, offset, size)
        with suppress(FileNotFoundError):
            return _read_file(copy, offset, size)
        copy.parent.mkdir(exist_ok=True)
        with folder_lock(copy.parent):  # no other process takes the file away before it is read
            if not copy.exists():
                size_of_shard = cached_table(index_path(shard)).shard_size
                _make_room(copy.parent, size_of_shard, mirror.max_bytes)
                _download(url, copy, size_of_shard)
            return _read_file(copy, offset, size)
    except OSError as error:
        # As it is it would count as an image that cannot be read.
        raise FetchError(f"{url}: {error}") from error


@lru_cache(maxsize=64)
def _mirror(folder: Path) -> Mirror:
    return msgspec.json.decode((folder / _MIRROR).read_bytes(), type=Mirror)


def _read_file(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def _make_room(folder: Path, size: int, max_bytes: int) -> None:
    """Remove the shards that have been in the folder longest, until ``size`` bytes more fit."""
    for left_over in folder.glob(".*.part"):  # of a process that was killed
        left_over.unlink()
    here = sorted(
        ((status := path.stat()).st_mtime_ns, status.st_size, path) for path in folder.glob("*.tar")
    )
    total = sum(bytes_here for _, bytes_here, _ in here)
    for _, bytes_here, path in here:
        if total + size <= max_bytes:
            break
        path.unlink()
        total -= bytes_here


def _download(url: str, copy: Path, size: int) -> None:
    with replacing(copy) as target:

        def fetch(file: IO[bytes]) -> None:
            target.seek(0)
            target.truncate()
            shutil.copyfileobj(file, target, 2**20)
            if target.tell() != size:
                raise ConnectionError(f"{target.tell()} bytes came instead of {size}")

        with_stream(url, fetch)
