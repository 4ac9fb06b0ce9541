"""Weights files: the tensors of one model, with text metadata that says what they are."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instseg.engine.errors import CheckpointError, UnreadableFileError
from instseg.engine.tensor_file import read_tensor_file, save_file_atomic

METADATA_KEY = "instseg"
"""The metadata entry of our own files: JSON with the configuration and the categories."""

_NESTED_KEYS = ("model", "state_dict", "model_state_dict")


def save_weights(path: Path, model_state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a model's ``state_dict`` as safetensors, atomically.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
    """
    save_file_atomic(path, model_state, metadata)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a weights file; no file can make this run code.

    Args:
        path: ``*.safetensors``, or a torch file of any other suffix, which is read with
            ``weights_only=True``: a dict of tensors, or one under the key ``model``,
            ``state_dict`` or ``model_state_dict``.

    Returns:
        The tensors on the CPU, and the metadata (empty for torch files).

    Raises:
        CheckpointError: no such file, or it holds no dict of tensors.
        UnreadableFileError: the file is cut short, damaged, of another format, or holds objects
            other than tensors and plain containers.
    """
    if path.suffix == ".safetensors":
        return read_tensor_file(path)
    return _state_dict(path, _read_torch_file(path)), {}


def _read_torch_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    # The unpickler does not check a damaged file, so what it stumbles over is of many kinds.
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreadableFileError(
            f"{path}: torch.load(weights_only=True) refuses this file ({reason}); it is cut short, "
            "not a torch file, or holds more than tensors. Save the bare state_dict, or convert "
            "the file to safetensors where it comes from"
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The dict of tensors in what a torch file held."""
    if isinstance(content, dict):
        for candidate in (content, *(content.get(key) for key in _NESTED_KEYS)):
            if (
                isinstance(candidate, dict)
                and candidate
                and all(isinstance(key, str) for key in candidate)
                and all(isinstance(value, Tensor) for value in candidate.values())
            ):
                return dict(candidate)
        found = "a dict with the keys " + ", ".join(repr(key) for key in list(content)[:8])
    else:
        found = f"a {type(content).__name__}"
    raise CheckpointError(
        f"{path}: expected a dict of tensors, at the top or under {' / '.join(_NESTED_KEYS)}; "
        f"found {found}"
    )
