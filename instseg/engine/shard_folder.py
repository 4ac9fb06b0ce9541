"""A folder with the tensors of a sharded training, each process's parts in a file of its own.

The files are safetensors, written and read by `torch.distributed.checkpoint`, so that another
number of processes, one among them, can put the parts together in another way.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from instseg.engine.atomic import fsync_folder
from instseg.engine.disk import how_to_mend
from instseg.engine.distributed import (
    is_writer,
    patient_group,
    rank_and_size,
    sum_over_processes,
    wait_for_all,
)
from instseg.engine.errors import CheckpointError, UnreadableFileError
from instseg.engine.sharding import own_part
from instseg.engine.tensor_file import read_metadata

_UNREADABLE = (
    CheckpointException,
    SafetensorError,
    OSError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch's reader stumbles over in damaged files."""


@dataclass(frozen=True)
class ShardFolder:
    """Tensors in a folder of this module's; see `instseg.engine.stored.StoredTensors`.

    Args:
        path: the folder.
        about: each tensor's shape and type, without values.
    """

    path: Path
    about: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path, files: int) -> ShardFolder:
        """Look at what a folder holds.

        Args:
            path: the folder.
            files: how many files it must have.

        Raises:
            UnreadableFileError: a file is missing, cut short or damaged.
        """
        found = sorted(path.glob("*.safetensors"))
        for file in found:
            read_metadata(file)
        if len(found) != files:
            raise UnreadableFileError(f"{path}: has {len(found)} files of the {files} that it had")
        try:
            metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
            about = {key: _about(key, entry) for key, entry in metadata.items()}
        except _UNREADABLE as error:
            raise UnreadableFileError(f"{path}: its files do not fit together: {error}") from error
        return cls(path, about)

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Copy the tensors named into those given; see `instseg.engine.stored.StoredTensors`."""
        _, size = rank_and_size()
        reader = HuggingFaceStorageReader(str(self.path))
        try:
            with warnings.catch_warnings():  # of one process alone, which is meant
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                load(
                    dict(into),
                    storage_reader=reader,
                    process_group=patient_group(),
                    no_dist=size == 1,
                )
        except _UNREADABLE as error:
            reason = _reason(error, self.path)
            raise UnreadableFileError(f"{self.path}: cannot be read: {reason}") from error


def write_shards(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write a new folder; all processes call it, and return when everything is on the disk.

    Args:
        path: the folder; what an earlier call began there is removed.
        tensors: sharded ones, or the same in every process; on any device.

    Returns:
        How many files it has.

    Raises:
        CheckpointError: the disk is full or the folder not writable (there is no folder then), or
            the first process does not find what the others have written.
    """
    if is_writer():
        shutil.rmtree(path, ignore_errors=True)
    wait_for_all()
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        save(_apart(tensors), storage_writer=writer, process_group=patient_group())
        fsync_folder(path)
    except (CheckpointException, OSError) as error:
        if is_writer():
            shutil.rmtree(path, ignore_errors=True)
        reason = _reason(error, path.parent)
        raise CheckpointError(
            f"{path}: cannot be written: {reason}; then resume. Files saved before are untouched"
        ) from error
    rank, _ = rank_and_size()
    own = list(path.glob(f"shard-{rank + 1:05d}-*.safetensors"))
    files = sum(sum_over_processes([len(own)]))
    if is_writer():
        ShardFolder.open(path, files)
    return files


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as the format asks."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = own_part(tensor).untyped_storage().data_ptr()
        apart[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return apart


def _about(key: str, entry: object) -> Tensor:
    """Shape and type of a tensor, of which each part has some rows and all parts have all rows.

    Raises:
        ValueError: there are gaps or overlaps.
    """
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"'{key}' is no tensor")
    tensor = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    parts = [(*chunk.offsets, *chunk.sizes) for chunk in entry.chunks if chunk.sizes.numel()]
    if tensor.ndim == 0:
        if len(parts) != 1:
            raise ValueError(f"'{key}' is there {len(parts)} times")
        return tensor
    at, n = 0, tensor.ndim
    for part in sorted(parts):
        if part[0] != at or any(part[1:n]) or part[n + 1 :] != tensor.shape[1:]:
            raise ValueError(f"the parts of '{key}' overlap or leave a gap at row {at}")
        at += part[n]
    return tensor


def _reason(error: BaseException, folder: Path) -> str:
    """What went wrong in the first process that has something to say, and what helps."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return f"process {rank}: {_reason(cause, folder)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {how_to_mend(error, folder)}"
    return str(error)
