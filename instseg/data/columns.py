"""Named arrays in one file that processes map into memory together, or in memory without a file.

The file: eight bytes of `_MAGIC`, the length and the CRC-32 of the header (``uint64`` each, little
endian), the header as JSON, then the arrays at multiples of 64 bytes. The header names each array's
type, shape and place, the file's length, and the CRC-32 of all that follows the header.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

_MAGIC = b"instseg\x01"  # the last byte is the layout's version
_START = struct.Struct("<8sQQ")
_ALIGNMENT = 64
_TYPES = {"uint8", "int32", "int64", "float64"}
_CHUNK = 1 << 22


class ColumnsError(ValueError):
    """A file that is not, or no longer, what `write_columns` wrote; the message says why."""


@dataclass(eq=False)
class Columns:
    """Arrays by name, and what else there is to know, fit for JSON.

    With a file, pickling takes its name alone and opening maps it again. Without one, the loader's
    worker processes get the arrays as shared memory.

    Args:
        arrays: ``uint8``, ``int32``, ``int64`` or ``float64``; those of a file are read-only.
        meta: texts, numbers, lists and dictionaries.
        file: where they lie; None for arrays in memory alone.
        identity: the file's checksums, the same for the same content.
    """

    arrays: Mapping[str, Array]
    meta: dict[str, Any]
    file: Path | None = None
    identity: str = ""
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None:
            return _reopened, (self.file, self.identity)
        return _from_tensors, (self._shared(), self.meta)

    def _shared(self) -> dict[str, torch.Tensor]:
        """The arrays in shared memory, where they stay: a pickle only names them."""
        if not self._tensors:
            for name, array in self.arrays.items():
                self._tensors[name] = torch.from_numpy(array).share_memory_()
            self.arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        return self._tensors


def write_columns(file: BinaryIO, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write arrays (see `Columns`) to a file that is open for writing."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    places = {}
    offset = checksum = 0
    for name, array in contiguous.items():
        assert array.dtype.name in _TYPES
        places[name] = (array.dtype.name, array.shape, offset)
        for part in _padded(array):
            checksum = zlib.crc32(part, checksum)
            offset += len(part)
    content = {"columns": places, "meta": meta, "bytes": offset, "crc": checksum}
    header = json.dumps(content).encode()
    header += b" " * (-(_START.size + len(header)) % _ALIGNMENT)
    file.write(_START.pack(_MAGIC, len(header), zlib.crc32(header)))
    file.write(header)
    for array in contiguous.values():
        for part in _padded(array):
            file.write(part)


def open_columns(path: Path, *, verify: bool = True) -> Columns:
    """Map a file of `write_columns` into memory.

    Args:
        path: the file.
        verify: compare the checksum of all arrays, which reads the file from end to end.

    Raises:
        OSError: it cannot be read.
        ColumnsError: it is another file, cut short, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(_START.size)
        if len(start) < _START.size or not start.startswith(_MAGIC):
            raise ColumnsError("no file of columns")
        _, length, header_crc = _START.unpack(start)
        size = os.fstat(file.fileno()).st_size
        if length > size:
            raise ColumnsError("cut short")
        header = file.read(length)
        if not header or zlib.crc32(header) != header_crc:
            raise ColumnsError("the header is damaged")
        content = json.loads(header)
        if size != _START.size + length + content["bytes"]:
            raise ColumnsError("cut short, or longer than it says")
        # Read, not mapped: what is mapped counts as this process's memory.
        if verify and _checksum(file) != content["crc"]:
            raise ColumnsError("the columns are damaged")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {
        name: np.frombuffer(
            view, dtype, math.prod(shape), offset=_START.size + length + offset
        ).reshape(shape)
        for name, (dtype, shape, offset) in content["columns"].items()
    }
    # What it was made from, and when, may differ between builds of the same.
    told = [content["columns"], content["meta"] | {"made_from": None}]
    told_crc = zlib.crc32(json.dumps(told, sort_keys=True).encode())
    return Columns(arrays, content["meta"], path, f"{told_crc:08x}{content['crc']:08x}")


def _reopened(path: Path, identity: str) -> Columns:
    try:
        columns = open_columns(path, verify=False)
    except (OSError, ColumnsError) as error:
        raise ColumnsError(f"{path}: lost while in use ({error}); start anew") from None
    if columns.identity != identity:
        raise ColumnsError(f"{path}: replaced while in use; start anew")
    return columns


def _from_tensors(tensors: Mapping[str, torch.Tensor], meta: dict[str, Any]) -> Columns:
    return Columns({name: tensor.numpy() for name, tensor in tensors.items()}, meta)


def _padded(array: Array) -> Iterator[memoryview | bytes]:
    """The bytes of an array in pieces, and zeros up to the next multiple of the alignment."""
    content: memoryview = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]
    yield bytes(-len(content) % _ALIGNMENT)


def _checksum(file: BinaryIO) -> int:
    checksum = 0
    while part := file.read(_CHUNK):
        checksum = zlib.crc32(part, checksum)
    return checksum
