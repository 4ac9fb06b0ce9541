"""All that a training's next step depends on, taken to a checkpoint and back."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor, nn

from instseg.engine.checkpoint import Best, Header
from instseg.engine.errors import CheckpointError
from instseg.engine.nonfinite_policy import NonFinitePolicy
from instseg.engine.state_tensors import flatten, group_settings, optimizer_slots, restore
from instseg.engine.stored import StoredTensors
from instseg.engine.update import Updater
from instseg.engine.window import Window

_log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Where a training stands.

    Args:
        updater: holds the model, its average, the optimizer and the loss scale.
        policy: counts the steps in a row that were left out.
        batches_per_epoch: length of the loader.
        accumulate: batches a step.
        schedule: the schedule in words, to tell whether it changed between runs.
        run: the caller's own entries of the checkpoint.
        step: updates made.
        epoch: epochs closed, with their evaluation.
        best: the best score so far.
        mark: the last improvement that early stopping counts from.
        window: running means of the figures since the last logged row.
    """

    updater: Updater
    policy: NonFinitePolicy
    batches_per_epoch: int
    accumulate: int
    schedule: str
    run: dict[str, JsonValue]
    step: int = 0
    epoch: int = 0
    best: Best | None = None
    mark: Best | None = None
    window: Window = field(default_factory=Window)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch; the last may have fewer batches than the others."""
        return math.ceil(self.batches_per_epoch / self.accumulate)

    @property
    def step_in_epoch(self) -> int:
        """Updates made in the epoch in course, in [0, steps_per_epoch]."""
        return self.step - self.epoch * self.steps_per_epoch

    def snapshot(self) -> tuple[dict[str, Tensor], Header]:
        """The state as a checkpoint's tensors and header."""
        model, optimizer = self.updater.model, self.updater.optimizer
        return flatten(self._modules(), optimizer), Header(
            step=self.step,
            epoch=self.epoch,
            batches_per_epoch=self.batches_per_epoch,
            accumulate=self.accumulate,
            schedule=self.schedule,
            optimizer=type(optimizer).__name__,
            param_groups=group_settings(model, optimizer),
            optimizer_slots=optimizer_slots(model, optimizer),
            scaler=self.updater.scaler.state_dict(),
            window=self.window.sums,
            best=self.best,
            mark=self.mark,
            skipped=self.policy.skipped,
            overflows=self.policy.overflows,
            run=self.run,
        )

    def load(self, path: Path, stored: StoredTensors, header: Header) -> None:
        """Become the state of a checkpoint. Settings stay this run's; changed ones are logged.

        Raises:
            CheckpointError: the checkpoint does not fit this run; names the file and the key.
        """
        self._check(path, header)
        restore(path, stored, header.optimizer_slots, self._modules(), self.updater.optimizer)
        if header.scaler:
            self.updater.scaler.load_state_dict(header.scaler)
        self.step, self.epoch = header.step, header.epoch
        self.best, self.mark = header.best, header.mark
        self.policy.skipped, self.policy.overflows = header.skipped, header.overflows
        self.window.sums = header.window

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.updater.model}
        return modules if self.updater.ema is None else {**modules, "ema": self.updater.ema}

    def _check(self, path: Path, header: Header) -> None:
        now: dict[str, object] = {
            "optimizer": type(self.updater.optimizer).__name__,
            "batches_per_epoch": self.batches_per_epoch,
            "accumulate": self.accumulate,
        }
        for key, value in now.items():
            if getattr(header, key) != value:
                raise CheckpointError(
                    f"{path}: was trained with {key} {getattr(header, key)}, this run has {value}; "
                    "resume with the settings and the data it was started with"
                )
        if not 0 <= header.step - header.epoch * self.steps_per_epoch <= self.steps_per_epoch:
            raise CheckpointError(
                f"{path}: step {header.step} does not lie in epoch {header.epoch + 1} of "
                f"{self.steps_per_epoch} steps each"
            )
        if header.scaler.keys() != self.updater.scaler.state_dict().keys():
            raise CheckpointError(
                f"{path}: header key 'scaler' has {sorted(header.scaler)}, this run needs "
                f"{sorted(self.updater.scaler.state_dict())}; resume with the same amp setting"
            )
        settings = group_settings(self.updater.model, self.updater.optimizer)
        for key, old, new in (
            ("schedule", header.schedule, self.schedule),
            ("param_groups", header.param_groups, settings),
        ):
            if old != new:
                _log.warning("%s: %s was %s; going on with %s", path, key, old, new)
