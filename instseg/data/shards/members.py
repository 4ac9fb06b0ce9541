"""Images by name: a file, or a member of a shard such as ``shard-000003.tar#000000017.jpg``."""

from __future__ import annotations

import io
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO

from instseg.data.shards.errors import ShardError
from instseg.data.shards.index import cached_table, index_path
from instseg.data.shards.store import read_bytes

_MEMBER = re.compile(r"(?P<shard>.+?\.tar)#(?P<member>.+)", re.DOTALL)


def member_name(shard: str, member: str) -> str:
    """The name of a shard's member as an image file."""
    return f"{shard}#{member}"


def split_member(path: str | Path) -> tuple[Path, str | None]:
    """The shard and the member of ``shard.tar#7.jpg``; of other paths the member is None."""
    match = _MEMBER.fullmatch(str(path))
    return (Path(match["shard"]), match["member"]) if match else (Path(path), None)


def open_image(path: Path) -> IO[bytes]:
    """An image file, opened for reading, or a member of a shard as one.

    Raises:
        ShardError: there is no such shard or member, or it is not as it was when it was indexed.
        FetchError: the shard's place does not answer.
        OSError: the file cannot be read.
    """
    shard, member = split_member(path)
    return path.open("rb") if member is None else io.BytesIO(_read_member(shard, member))


@lru_cache(maxsize=1)  # decoders open a file twice: to see what it is, and to read it
def _read_member(shard: Path, member: str) -> bytes:
    try:
        found = cached_table(index_path(shard)).find(member)
    except FileNotFoundError:
        raise ShardError(shard, "has no index: was it opened with open_shards?") from None
    if found is None:
        raise ShardError(shard, "there is no such image in this shard", member)
    offset, size, crc32 = found
    data = read_bytes(shard, offset, size)
    if zlib.crc32(data) != crc32:
        raise ShardError(shard, "has other content than when the shard was indexed", member)
    return data
