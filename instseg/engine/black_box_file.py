"""The files of a black box: all of a step whose loss or gradient was not finite.

A folder ``black_box/step-000123`` of a run holds

- ``report.json``: what was wrong and where it began, the step's figures, the statistics of every
  module and parameter for the first micro-batch with values that are not finite;
- ``batches.safetensors``: the micro-batches as the model got them;
- ``weights.safetensors``: the model before the step, a weights file like any other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from instseg import __version__
from instseg.engine.amp import Amp
from instseg.engine.atomic import write_file_atomic
from instseg.engine.batch_file import BatchDescription, pack_batch, unpack_batch
from instseg.engine.errors import EngineError
from instseg.engine.figures import Figure
from instseg.engine.module_statistics import Examination
from instseg.engine.plain_batch import PlainBatch
from instseg.engine.tensor_file import read_tensor_file, save_file_atomic

FORMAT_VERSION = 1

REPORT, BATCHES, WEIGHTS = "report.json", "batches.safetensors", "weights.safetensors"

_METADATA_KEY = "instseg_batches"

Count = Annotated[int, Field(ge=0)]


class BlackBoxError(EngineError):
    """A folder is no black box that this version reads; names file and key."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class BatchReport(_Section):
    """What the report says of one micro-batch.

    Args:
        index: its number in the step, over all processes.
        seed: of the global random generators when its forward pass begins.
        share: what its loss counts in the step: its images over those of the step.
        image_ids: the data set's ids.
        paths: the image files.
        losses: each loss's value, and their sum as ``loss``.
    """

    index: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    share: Figure
    image_ids: list[int]
    paths: list[str]
    losses: dict[str, Figure]


class Report(_Section):
    """``report.json``.

    Args:
        problem: which loss or gradient is not finite.
        findings: where in the model it begins, in words.
        step: number of the update, from 1.
        epoch: number of the epoch, from 1.
        lr: learning rate of the first parameter group.
        amp: half type of the forward pass.
        loss_scale: factor on the loss of fp16 training, else 1.
        grad_norm: 2-norm of the whole gradient, the loss scale taken out.
        batches: the step's micro-batches.
        device: type of the device, such as "cuda".
        threads: of torch on the CPU; sums differ in their last bits with it.
        eval_modules: modules that were not in training mode.
        frozen: parameters that were not trained.
        examined: the micro-batch (its ``index``) that ``examination`` is of.
        examination: what a repetition right after the step showed, None if it failed.
        examination_error: why it failed.
        format_version: of this layout.
        versions: of the programs that wrote it.
    """

    problem: str
    findings: list[str]
    step: Count
    epoch: Count
    lr: Figure
    amp: Amp | None
    loss_scale: Figure
    grad_norm: Figure
    batches: Annotated[list[BatchReport], Field(min_length=1)]
    device: str
    threads: Annotated[int, Field(ge=1)]
    eval_modules: list[str]
    frozen: list[str]
    examined: Count | None
    examination: Examination | None
    examination_error: str | None
    format_version: int = FORMAT_VERSION
    versions: dict[str, str] = Field(
        default_factory=lambda: {
            "instseg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    )


@dataclass(frozen=True)
class StoredBatch:
    """A micro-batch with all that it takes to repeat it; ``about.index`` is its number."""

    about: BatchReport
    batch: PlainBatch


_DESCRIPTIONS = TypeAdapter(list[BatchDescription])


def save_black_box(
    folder: Path,
    report: Report,
    batches: Sequence[StoredBatch],
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write the folder in one piece or not at all; one of that name is replaced.

    Args:
        folder: its parent is made if need be.
        report: names the same micro-batches.
        batches: in the order of the report.
        weights: ``state_dict`` of the model before the step.
        metadata: of the weights file; see `instseg.engine.weights`.

    Raises:
        CheckpointError, OSError: the disk is full or the folder not writable.
        TypeError: a target is of a type that cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    descriptions = []
    for number, stored in enumerate(batches):
        of_batch, description = pack_batch(stored.batch)
        descriptions.append(description)
        tensors |= {f"{number}.{key}": value for key, value in of_batch.items()}
    text = _DESCRIPTIONS.dump_json(descriptions).decode()
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_file_atomic(temporary / REPORT, report.model_dump_json(indent=2).encode())
        save_file_atomic(temporary / BATCHES, tensors, {_METADATA_KEY: text})
        save_file_atomic(temporary / WEIGHTS, weights, metadata)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_black_box(folder: Path) -> tuple[Report, list[StoredBatch]]:
    """What `save_black_box` wrote, but for the weights.

    Raises:
        BlackBoxError: the folder is none, damaged, or of a newer version; names file and key.
    """
    report = _load_report(folder / REPORT)
    path = folder / BATCHES
    try:
        tensors, metadata = read_tensor_file(path)
    except EngineError as error:
        raise BlackBoxError(str(error)) from error
    try:
        descriptions = _DESCRIPTIONS.validate_json(metadata.get(_METADATA_KEY, ""))
    except ValidationError as error:
        raise _invalid(path, error) from error
    if len(descriptions) != len(report.batches):
        raise BlackBoxError(
            f"{path}: holds {len(descriptions)} micro-batches, {REPORT} names "
            f"{len(report.batches)}: the files are not of one step"
        )
    batches = []
    for number, (description, about) in enumerate(zip(descriptions, report.batches, strict=True)):
        prefix = f"{number}."
        of_batch = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            batches.append(StoredBatch(about, unpack_batch(of_batch, description)))
        except ValueError as error:
            raise BlackBoxError(f"{path}: micro-batch {number}: {error}") from error
    return report, batches


def _load_report(path: Path) -> Report:
    if not path.is_file():
        raise BlackBoxError(
            f"{path}: no such file; a black box is a folder like RUN/black_box/step-000123"
        )
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BlackBoxError(f"{path}: cannot be read as JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BlackBoxError(
            f"{path}: format {version}, but this instseg {__version__} reads up to "
            f"{FORMAT_VERSION}; install a newer instseg"
        )
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(path, error) from error


def _invalid(path: Path, error: ValidationError) -> BlackBoxError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the whole"
    return BlackBoxError(f"{path}: {key}: {first['msg']}; the file is damaged or of another kind")
