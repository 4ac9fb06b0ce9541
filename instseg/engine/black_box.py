"""Recording a step whose loss or gradient was not finite, and repeating it."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from instseg.engine.amp import Amp
from instseg.engine.black_box_file import (
    BatchReport,
    BlackBoxError,
    Report,
    StoredBatch,
    save_black_box,
)
from instseg.engine.buffers import BufferSnapshot
from instseg.engine.distributed import gather, is_writer
from instseg.engine.errors import CheckpointError
from instseg.engine.module_statistics import Examination, examine
from instseg.engine.plain_batch import PlainBatch
from instseg.engine.protocols import Batch
from instseg.engine.rng import seed_everything
from instseg.engine.weights import METADATA_KEY

FOLDER = "black_box"
KEPT = 5
"""Folders in a run at most: the first ones and the latest."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of a step.

    Args:
        index: its number in the step, over all processes.
        seed: of the global random generators when its forward pass begins.
        batch: at least one image.
        share: what its loss counts in the step: its images over those of the step.
        losses: each loss's value, and their sum as ``loss``.
    """

    index: int
    seed: int
    batch: Batch
    share: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class FaultyStep:
    """A step that must not be taken.

    Args:
        problem: which loss or gradient is not finite.
        step: number of the update, from 1.
        epoch: number of the epoch, from 1.
        lr: learning rate of the first parameter group.
        amp: half type of the forward pass.
        loss_scale: factor on the loss of fp16 training, else 1.
        grad_norm: 2-norm of the whole gradient, the loss scale taken out.
        micro_batches: those that this process worked on.
    """

    problem: str
    step: int
    epoch: int
    lr: float
    amp: Amp | None
    loss_scale: float
    grad_norm: float
    micro_batches: Sequence[MicroBatch]


@dataclass(frozen=True)
class _Share:
    """What one process has to say of the step."""

    batches: list[StoredBatch]
    examined: int | None
    examination: Examination | None
    error: str | None


class BlackBox:
    """Writes one folder for each faulty step of a run, `KEPT` of them at most.

    Args:
        run_dir: gets the folder ``black_box``.
        weights_metadata: as for the run's weights files, so that the model can be rebuilt.
    """

    def __init__(self, run_dir: Path, weights_metadata: Mapping[str, JsonValue]) -> None:
        self.folder = run_dir / FOLDER
        self._metadata = {METADATA_KEY: json.dumps(dict(weights_metadata))}

    def record(self, model: nn.Module, before: BufferSnapshot, fault: FaultyStep) -> str:
        """Repeat the step to see where it went wrong, and write it down.

        Of several processes all call it, and the first writes. The model's buffers are put back
        to those before the step and its gradients are dropped.

        Args:
            model: with the weights before the step; not wrapped in DDP.
            before: its buffers before the step.
            fault: the step.

        Returns:
            Where in the model it began and where everything is, in sentences for a person; what
            hindered the writing, if anything did (the step's own error is more important).
        """
        device = next(model.parameters()).device
        before.restore()
        mine = _repeat(model, device, fault)
        before.restore()
        weights = model.state_dict()
        shares = gather(mine)
        written = self._write(model, device, fault, shares, weights) if is_writer() else ""
        return gather(written)[0]

    def _write(
        self,
        model: nn.Module,
        device: torch.device,
        fault: FaultyStep,
        shares: Sequence[_Share],
        weights: Mapping[str, Tensor],
    ) -> str:
        batches = sorted((b for s in shares for b in s.batches), key=lambda b: b.about.index)
        told = _most_telling(shares)
        findings = [] if told.examination is None else told.examination.findings
        report = Report(
            problem=fault.problem,
            findings=findings,
            step=fault.step,
            epoch=fault.epoch,
            lr=fault.lr,
            amp=fault.amp,
            loss_scale=fault.loss_scale,
            grad_norm=fault.grad_norm,
            batches=[stored.about for stored in batches],
            device=device.type,
            threads=torch.get_num_threads(),
            eval_modules=[name for name, m in model.named_modules() if not m.training],
            frozen=[name for name, p in model.named_parameters() if not p.requires_grad],
            examined=told.examined,
            examination=told.examination,
            examination_error=told.error,
        )
        path = self.folder / f"step-{fault.step:06d}"
        begins = [f"Where it begins: {'; '.join(findings)}."] if findings else []
        try:
            self._make_room(path)
            save_black_box(path, report, batches, weights, self._metadata)
        except (CheckpointError, OSError, TypeError) as error:
            ids = [i for stored in batches for i in stored.about.image_ids]
            return " ".join([*begins, f"Image ids: {ids}. No black box was written: {error}."])
        return " ".join(
            [*begins, f"Batch, weights and statistics are in {path}: instseg replay {path}."]
        )

    def _make_room(self, path: Path) -> None:
        """Delete what a killed process left, and the latest folders if they are too many."""
        for unfinished in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(unfinished)
        others = sorted(p for p in self.folder.glob("step-*") if p != path)
        for old in others[KEPT - 1 :]:
            _log.info("%s: making room for the black box of a later step", old)
            shutil.rmtree(old)


def set_modes(model: nn.Module, report: Report) -> None:
    """Put a rebuilt model into the modes that it had in the step.

    Raises:
        BlackBoxError: the report names a module or parameter that the model lacks.
    """
    model.train()
    try:
        for name in report.eval_modules:
            model.get_submodule(name).training = False
        for name in report.frozen:
            model.get_parameter(name).requires_grad_(False)
    except AttributeError as error:
        raise BlackBoxError(f"the report and the model do not fit: {error}") from error


def _repeat(model: nn.Module, device: torch.device, fault: FaultyStep) -> _Share:
    """Go through all of this process's micro-batches, as sync batch norm needs it."""
    stored: list[StoredBatch] = []
    examined: int | None = None
    examination: Examination | None = None
    error: str | None = None
    for micro in fault.micro_batches:
        about = BatchReport(
            index=micro.index,
            seed=micro.seed,
            share=micro.share,
            image_ids=list(micro.batch.image_ids),
            paths=[str(path) for path in micro.batch.paths],
            losses=dict(micro.losses),
        )
        batch = PlainBatch.part_of(micro.batch)
        stored.append(StoredBatch(about, batch))
        if error is not None:
            continue
        try:
            seed_everything(micro.seed)
            scale = fault.loss_scale * micro.share
            found = examine(model, batch, device=device, amp=fault.amp, scale=scale)
        except RuntimeError as problem:  # out of memory, as a rule
            error = f"repeating micro-batch {micro.index} failed: {problem}"
            _log.warning("step %d: %s", fault.step, error)
            continue
        if examination is None or _weight(found) > _weight(examination):
            examined, examination = micro.index, found
    return _Share(stored, examined, examination, error)


def _most_telling(shares: Sequence[_Share]) -> _Share:
    """The one of the earliest micro-batch among those that tell most."""
    return min(shares, key=lambda share: (-_weight(share.examination), share.examined or 0))


def _weight(examination: Examination | None) -> int:
    """How much it tells: a loss that is not finite more than a gradient."""
    if examination is None:
        return 0
    if not all(math.isfinite(value) for value in examination.losses.values()):
        return 3
    return 2 if examination.findings else 1
