"""Checkpoints: a training's whole state in one safetensors file, and the two newest of them.

That of a model sharded among processes lies in a folder of shards, and the file names the folder.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor
from torch.distributed.tensor import DTensor

from instseg import __version__
from instseg.engine.distributed import is_writer
from instseg.engine.errors import CheckpointError, UnreadableFileError
from instseg.engine.shard_folder import ShardFolder, write_shards
from instseg.engine.stored import StoredTensors, WholeTensors
from instseg.engine.tensor_file import read_metadata, read_tensor_file, save_file_atomic

FORMAT_VERSION = 2
_METADATA_KEY = "instseg_checkpoint"
_SHARDS = r"shards-\d+-\d+"

_log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=0)]


class Best(BaseModel):
    """The best score so far, and when it was reached."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    metric: str
    value: float
    step: Count
    epoch: Count


class Shards(BaseModel):
    """Where the tensors of a sharded training lie.

    Args:
        folder: its name; it is beside the checkpoint.
        files: how many it has.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    folder: Annotated[str, Field(pattern=f"^{_SHARDS}$")]
    files: Count


class Header(BaseModel):
    """All of a training's state that is not a tensor; stored as JSON in the file's metadata.

    Args:
        format_version: of this layout.
        versions: of the programs that wrote it.
        step: updates made.
        epoch: epochs closed, evaluation included; the course stands ``step`` minus this many
            epochs' steps into the next one.
        batches_per_epoch: length of the loader.
        accumulate: batches a step.
        schedule: the schedule in words.
        optimizer: its class.
        param_groups: its groups' settings and parameters' names.
        optimizer_slots: for each parameter that has state, the names of its tensors.
        scaler: of fp16 training, empty for others.
        window: sums and counts of the figures since the last logged row.
        best: the best score so far.
        mark: the last improvement that early stopping counts from.
        skipped: steps in a row left out as not finite.
        overflows: steps in a row that overflowed fp16.
        run: the caller's own: configuration and categories.
        shards: where the tensors are, None if they are in the same file.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    versions: dict[str, str] = Field(
        default_factory=lambda: {
            "instseg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    )
    step: Count
    epoch: Count
    batches_per_epoch: Count
    accumulate: Count
    schedule: str
    optimizer: str
    param_groups: list[dict[str, JsonValue]]
    optimizer_slots: dict[str, list[str]]
    scaler: dict[str, int | float]
    window: dict[str, tuple[float, int]]
    best: Best | None
    mark: Best | None
    skipped: Count
    overflows: Count
    run: dict[str, JsonValue]
    shards: Shards | None = None


class CheckpointFolder:
    """``last.safetensors`` and the older ``previous.safetensors`` of a run folder.

    At every moment, that of a kill included, at least one of them is complete once the first save
    has returned.
    """

    def __init__(self, run_dir: Path) -> None:
        self.last = run_dir / "last.safetensors"
        self.previous = run_dir / "previous.safetensors"

    def exists(self) -> bool:
        """Whether a checkpoint was ever saved here."""
        return self.last.exists() or self.previous.exists()

    def save(self, tensors: Mapping[str, Tensor], header: Header) -> None:
        """Make a new ``last``; the one there was becomes ``previous``.

        Of a group's processes the first writes; each its own shards of what is sharded among them.

        Raises:
            CheckpointError: the disk is full or the folder not writable; both are untouched.
        """
        # A damaged `last` must not take the place of the good `previous` it was resumed from. That
        # is to be judged first: new shards may take the names of damaged ones.
        keep_old_as = self.previous if is_writer() and _is_complete(self.last) else None
        if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            header, tensors = self._with_shards(tensors, header), {}
        if not is_writer():
            return
        metadata = {_METADATA_KEY: header.model_dump_json()}
        save_file_atomic(self.last, tensors, metadata, keep_old_as)
        self._remove_old_shards()

    def _with_shards(self, tensors: Mapping[str, Tensor], header: Header) -> Header:
        """Write the tensors into a folder of shards; returns the header that names it."""
        if is_writer():
            self._remove_old_shards()  # what killed processes left takes room
        folder = self.last.with_name(f"shards-{header.step}-{header.epoch}")
        files = write_shards(folder, tensors)
        shards = Shards(folder=folder.name, files=files)
        return header.model_copy(update={"shards": shards})

    def load(self) -> tuple[Path, StoredTensors, Header] | None:
        """The newest complete checkpoint, None if none was ever saved.

        Raises:
            CheckpointError: there are files but none is usable; names the file and what is wrong.
        """
        problems: list[str] = []
        for path in (self.last, self.previous):
            if not path.exists():
                problems.append(f"{path}: missing")
                continue
            try:
                tensors, header = read_checkpoint(path)
                stored = _shards_of(path, header) or WholeTensors(tensors)
            except UnreadableFileError as error:
                problems.append(str(error))
                continue
            if problems:
                _log.warning("%s; falling back to %s", problems[0], path)
            return path, stored, header
        if self.exists():
            raise CheckpointError("no usable checkpoint: " + "; ".join(problems))
        return None

    def _remove_old_shards(self) -> None:
        """Remove folders that no checkpoint names: older ones, and those of killed processes."""
        in_use = {_named_shards(self.last), _named_shards(self.previous)}
        for folder in self.last.parent.glob("shards-*-*"):
            if re.fullmatch(_SHARDS, folder.name) and folder.name not in in_use:
                shutil.rmtree(folder, ignore_errors=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Header]:
    """The tensors and the header of a checkpoint; no tensors of one that is sharded.

    Raises:
        UnreadableFileError: cut short, damaged, or not safetensors.
        CheckpointError: a safetensors file, but not a checkpoint that this version understands.
    """
    tensors, metadata = read_tensor_file(path)
    return tensors, _parse(path, metadata.get(_METADATA_KEY))


def _parse(path: Path, text: str | None) -> Header:
    if text is None:
        raise CheckpointError(
            f"{path}: not a training checkpoint (its metadata has no '{_METADATA_KEY}'); a weights "
            "file holds no optimizer to resume from"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: '{_METADATA_KEY}' is not JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, but this instseg {__version__} reads up to "
            f"{FORMAT_VERSION}; install a newer instseg to resume this run"
        )
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version}, of an older instseg, whose trainings drew their "
            "random numbers in another way: finish the run with that version, or start a new one "
            "from its weights (train.init_from)"
        )
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or _METADATA_KEY
        raise CheckpointError(f"{path}: header key '{key}': {first['msg']}") from error


def _shards_of(path: Path, header: Header) -> ShardFolder | None:
    """The folder that a checkpoint names, if it is a sharded one; raises UnreadableFileError."""
    if header.shards is None:
        return None
    return ShardFolder.open(path.with_name(header.shards.folder), header.shards.files)


def _is_complete(path: Path) -> bool:
    """Whether a checkpoint can be trusted, its shards included."""
    try:
        header = _parse(path, read_metadata(path).get(_METADATA_KEY))
        _shards_of(path, header)
    except CheckpointError:
        return False
    return True


def _named_shards(path: Path) -> str | None:
    """The folder that a checkpoint names; None if there is none, or no readable checkpoint."""
    try:
        shards = _parse(path, read_metadata(path).get(_METADATA_KEY)).shards
    except CheckpointError:
        return None
    return None if shards is None else shards.folder
