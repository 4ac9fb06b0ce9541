"""Safetensors files: written atomically, read without trusting them. No pickle, so no code runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from instseg.engine.atomic import write_file_atomic
from instseg.engine.disk import how_to_mend
from instseg.engine.errors import CheckpointError, UnreadableFileError


def save_file_atomic(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    keep_old_as: Path | None = None,
) -> None:
    """Write a safetensors file in one piece or not at all.

    Args:
        path: where to; a file there stays as it is until the new one is safe on the disk.
        tensors: on any device, of any strides; tensors may share memory (each gets its own copy).
        metadata: text entries of the file's header.
        keep_old_as: the name that the file now at ``path`` gets, in the same folder.

    Raises:
        CheckpointError: the disk is full or the folder not writable; ``path`` is untouched.
    """
    data = save(_storable(tensors), dict(metadata))
    try:
        write_file_atomic(path, data, keep_old_as)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write {len(data):,} bytes: {error.strerror or error}: "
            f"{how_to_mend(error, path.parent)}; then resume. Files saved before are untouched"
        ) from error


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file (on the CPU) and its metadata.

    Raises:
        CheckpointError: there is no such file.
        UnreadableFileError: the file is cut short, damaged or not safetensors.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone of a safetensors file whose data is all there; raises the same."""
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    # RuntimeError: the file vanished while it was being opened.
    except (SafetensorError, OSError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableFileError(
            f"{path}: not a complete safetensors file ({error}); it was cut short, damaged, or "
            "written in another format"
        ) from error


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format asks."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(tensor.untyped_storage().data_ptr())
        stored[key] = tensor
    return stored
