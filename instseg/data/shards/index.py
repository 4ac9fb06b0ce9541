"""The index of one shard: where its images lie, and their COCO records."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from instseg.data.replacing import replacing
from instseg.data.shards.errors import ShardError
from instseg.data.shards.tar import Member, TarPass

INDEX_SUFFIX = ".index"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What the images in a shard end in; other members than these and ``KEY.json`` do not count."""

MAX_JSON = 2**26
"""The longest ``KEY.json``, in bytes."""
_MAX_NAME = 255
_VERSION = "1"
_TYPES = {
    "names": np.uint8,
    "offsets": np.int64,
    "sizes": np.int64,
    "crc32": np.uint32,
}


class Sample(msgspec.Struct):
    """The records of one image, as in ``KEY.json``.

    Args:
        image: the COCO image record.
        annotations: the COCO annotations of the image.
        member: the name of the image in its shard; empty in ``KEY.json`` itself.
    """

    image: dict[str, Any]
    annotations: list[Any]
    member: str = ""


@dataclass(frozen=True)
class MemberTable:
    """Where the N images of a shard lie, in order of their names.

    Args:
        names: ``bytes [N]``, sorted.
        offsets: ``int64 [N]``, of the content in the tar, in bytes.
        sizes: ``int64 [N]``, in bytes.
        crc32: ``uint32 [N]``, of the content.
        shard_size: bytes of the tar.
    """

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.uint32]
    shard_size: int

    def find(self, name: str) -> tuple[int, int, int] | None:
        """(offset, size, CRC-32) of an image, None where there is none of that name."""
        key = name.encode()
        row = int(np.searchsorted(self.names, key))
        if row == len(self.names) or self.names[row] != key:
            return None
        return int(self.offsets[row]), int(self.sizes[row]), int(self.crc32[row])


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a shard.

    Args:
        sha256: of the whole tar, as hexadecimal digits.
        table: where its images lie.
        samples: their records, in the order of the tar.
    """

    sha256: str
    table: MemberTable
    samples: list[Sample]


def index_path(shard: Path) -> Path:
    """The index of a shard: ``shard-000000.tar.index`` beside it."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def build_index(file: IO[bytes], shard: str) -> ShardIndex:
    """Read a whole shard once.

    Args:
        file: the tar, from its beginning.
        shard: its name, for errors.

    Raises:
        ShardError: the tar cannot be used (see `TarPass.members`), an image has no ``KEY.json`` or
            the other way round, a key has two images, or a ``KEY.json`` has not
            `Sample`'s content.
    """
    tar = TarPass(file, shard)
    records: dict[str, Sample] = {}
    rows: dict[str, tuple[str, int, int, int]] = {}
    for member in tar.members():
        key, suffix = _split_key(member.name)
        if suffix == ".json":
            records[key] = _parse_record(member, shard)
        elif suffix in IMAGE_SUFFIXES:
            if key in rows:
                text = f"its key has another image, {rows[key][0]}; give each its own"
                raise ShardError(shard, text, member.name)
            size = len(member.content)
            rows[key] = (member.name, member.offset, size, zlib.crc32(member.content))
    for key in sorted(rows.keys() ^ records.keys()):
        if key in rows:
            raise ShardError(shard, f"there is no {key}.json beside it", rows[key][0])
        raise ShardError(shard, "there is no image of that name beside it", f"{key}.json")
    samples = [
        Sample(records[key].image, records[key].annotations, member=row[0])
        for key, row in rows.items()
    ]
    return ShardIndex(tar.sha256(), _table(rows.values(), tar.size), samples)


def save_index(index: ShardIndex, path: Path) -> None:
    """Write an index as a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    table = index.table
    names = table.names
    arrays: dict[str, npt.NDArray[Any]] = {
        "names": names.view(np.uint8).reshape(len(names), names.itemsize),
        "offsets": table.offsets,
        "sizes": table.sizes,
        "crc32": table.crc32,
        "records": np.frombuffer(msgspec.json.encode(index.samples), np.uint8),
    }
    metadata = {"version": _VERSION, "sha256": index.sha256, "size": str(table.shard_size)}
    with replacing(path) as file:
        file.write(save(arrays, metadata))


def load_table(path: Path) -> tuple[str, MemberTable]:
    """The SHA-256 of a shard and the table of its images, of what `save_index` wrote.

    Raises:
        FileNotFoundError: there is none.
        ShardError: damaged, or of another version.
    """
    with _opened(path) as file:
        table = _table_of(file, path)
        return file.metadata().get("sha256", ""), table


def load_samples(path: Path) -> list[Sample]:
    """The records of a shard's images; raises as `load_table`."""
    with _opened(path) as file:
        records = file.get_tensor("records").tobytes()
    try:
        return msgspec.json.decode(records, type=list[Sample])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


@lru_cache(maxsize=64)
def cached_table(path: Path) -> MemberTable:
    """The table of an index file; a process keeps the last few. Raises as `load_table`."""
    return load_table(path)[1]


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _table_of(file: safe_open, path: Path) -> MemberTable:
    metadata = file.metadata() or {}
    if metadata.get("version") != _VERSION or set(file.keys()) != {*_TYPES, "records"}:
        raise _damaged(path, "it is no index of this version of instseg")
    arrays = {name: file.get_tensor(name) for name in _TYPES}
    shard_size = metadata.get("size", "")
    if not _fits(arrays, shard_size):
        raise _damaged(path, "its table does not fit its shard")
    names = np.ascontiguousarray(arrays["names"])
    return MemberTable(
        names.view(f"S{names.shape[1]}").reshape(len(names)),
        arrays["offsets"],
        arrays["sizes"],
        arrays["crc32"],
        int(shard_size),
    )


def _fits(arrays: dict[str, npt.NDArray[Any]], shard_size: str) -> bool:
    """Whether all columns are of one length and lie in a shard of that size."""
    names, offsets, sizes = arrays["names"], arrays["offsets"], arrays["sizes"]
    return (
        all(array.dtype == _TYPES[name] for name, array in arrays.items())
        and names.ndim == 2
        and 0 < names.shape[1] <= _MAX_NAME
        and all(array.shape[:1] == (len(names),) for array in arrays.values())
        and re.fullmatch(r"[0-9]{1,18}", shard_size) is not None
        and not (offsets < 0).any()
        and not (sizes < 0).any()
        and not (offsets > int(shard_size) - sizes).any()
    )


def _damaged(path: Path, reason: str) -> ShardError:
    return ShardError(path, f"{reason}; delete it, and it is built again")


def _split_key(name: str) -> tuple[str, str]:
    """``a/7`` and ``.jpg`` of ``a/7.jpg``: WebDataset splits at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _parse_record(member: Member, shard: str) -> Sample:
    if len(member.content) > MAX_JSON:
        raise ShardError(shard, f"is longer than {MAX_JSON} bytes", member.name)
    try:
        return msgspec.json.decode(member.content, type=Sample)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        text = f'is not {{"image": {{...}}, "annotations": [...]}}: {error}'
        raise ShardError(shard, text, member.name) from error


def _table(rows: Iterable[tuple[str, int, int, int]], shard_size: int) -> MemberTable:
    ordered = sorted((name.encode(), offset, size, crc) for name, offset, size, crc in rows)
    names, offsets, sizes, crc32 = zip(*ordered, strict=True) if ordered else ((), (), (), ())
    return MemberTable(
        np.array(names, dtype=f"S{max(map(len, names), default=1)}"),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array(crc32, dtype=np.uint32),
        shard_size,
    )
