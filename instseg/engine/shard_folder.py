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
from instseg.engine.distributed import is_writer, rank_and_size, wait_for_all
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
        found = shard_files(path)
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
                load(dict(into), storage_reader=reader, no_dist=size == 1)
        except _UNREADABLE as error:
            reason = _reason(error, self.path)
            raise UnreadableFileError(f"{self.path}: cannot be read: {reason}") from error


def write_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new folder; all processes call it, and return when everything is on the disk.

    Args:
        path: the folder; what an earlier call began there is removed.
        tensors: sharded ones, or the same in every process; on any device.

    Raises:
        CheckpointError: the disk is full or the folder not writable; there is no folder then.
    """
    if is_writer():
        shutil.rmtree(path, ignore_errors=True)
    wait_for_all()
    writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
    try:
        save(_apart(tensors), storage_writer=writer)
        fsync_folder(path)
    except (CheckpointException, OSError) as error:
        if is_writer():
            shutil.rmtree(path, ignore_errors=True)
        reason = _reason(error, path.parent)
        raise CheckpointError(
            f"{path}: cannot be written: {reason}; then resume. Files saved before are untouched"
        ) from error


def shard_files(path: Path) -> list[Path]:
    """The files of a folder; none if there is no folder."""
    return sorted(path.glob("*.safetensors"))


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
    """Shape and type of a tensor whose parts cover it; raises ValueError where they do not."""
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"'{key}' is no tensor")
    there, whole = sum(chunk.sizes.numel() for chunk in entry.chunks), entry.size.numel()
    if there != whole:
        raise ValueError(f"the parts of '{key}' have {there} values of its {whole}")
    return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")


def _reason(error: BaseException, folder: Path) -> str:
    """What went wrong in the first process that has something to say, and what helps."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return f"process {rank}: {_reason(cause, folder)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {how_to_mend(error, folder)}"
    return str(error)
