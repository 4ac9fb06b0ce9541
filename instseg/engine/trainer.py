"""The training loop: epochs of steps, evaluation, checkpoints, and a resume that changes nothing.

A training is a function of its configuration alone. All that the next step depends on (weights,
optimizer, average, loss scale, random generators, place in the data, best score, running means) is
in the checkpoint, the learning rate is a function of the step, and loading data and evaluating
leave the random generators as they were. So a run that is killed and resumed ends bit-equal, on a
CPU with the same number of threads, to one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer

from instseg import __version__
from instseg.engine.checkpoint import Best, CheckpointFolder
from instseg.engine.errors import NonFiniteLossError, RunExistsError
from instseg.engine.nonfinite import write_dump
from instseg.engine.options import TrainerOptions
from instseg.engine.progress import ProgressView, make_progress
from instseg.engine.protocols import Batch, EvaluateFn, Loader, MetricLogger, Row, ScheduleFn
from instseg.engine.rng import preserved_rng, seed_everything
from instseg.engine.signals import StopSignals
from instseg.engine.state import TrainingState
from instseg.engine.update import Updater
from instseg.engine.weights import METADATA_KEY, save_weights
from instseg.engine.window import Window

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Args:
        status: "interrupted" by a signal, with everything saved for a resume, or "finished".
        step: updates made.
        epoch: epochs completed.
        best: the best score, None if none was evaluated.
    """

    status: Literal["finished", "interrupted"]
    step: int
    epoch: int
    best: Best | None


class Trainer:
    """Trains a model and keeps everything that the run leaves behind in one folder.

    Args:
        model: on its device; ``model(images, targets)`` returns a dict of scalar losses. Parts it
            wants frozen in eval mode it keeps so in its own ``train()``.
        optimizer: over parameters of ``model``; each group's ``lr`` is its base learning rate.
        schedule: factor on the base learning rates as a function of the step.
        train_loader: batches that depend on epoch and position alone.
        options: how long and how.
        run_dir: gets ``last``, ``previous``, ``best`` and ``final.safetensors``.
        evaluate: scores a model; None for no evaluation.
        loggers: get a row of metrics every ``log_every`` steps and at each evaluation.
        weights_metadata: configuration, class names and category ids, stored as JSON in the
            weights files so that they can be used without a configuration.
        progress: what a person sees; by default a bar on a terminal, log lines elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: ScheduleFn,
        train_loader: Loader,
        *,
        options: TrainerOptions,
        run_dir: Path,
        evaluate: EvaluateFn | None = None,
        loggers: Sequence[MetricLogger] = (),
        weights_metadata: Mapping[str, JsonValue] | None = None,
        progress: ProgressView | None = None,
    ) -> None:
        if len(train_loader) == 0:
            raise ValueError("the training loader has no batches: the data set is empty")
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = train_loader
        self.options = options
        self.run_dir = run_dir
        self.evaluate = evaluate
        self.loggers = loggers
        self.weights_metadata = dict(weights_metadata or {})
        self.progress = make_progress() if progress is None else progress
        self.updater = Updater(
            model,
            optimizer,
            amp=options.amp,
            clip_norm=options.clip_norm,
            ema_decay=options.ema_decay,
        )
        self.device = self.updater.device
        self.state = TrainingState(
            self.updater,
            batches_per_epoch=len(train_loader),
            accumulate=options.accumulate,
            schedule=repr(schedule),
            run=self.weights_metadata,
        )
        self.total_steps = options.epochs * self.state.steps_per_epoch
        self._checkpoints = CheckpointFolder(run_dir)
        self._saved_at: tuple[int, int] | None = None
        self._stop = StopSignals()
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def run(self, resume: bool = False) -> TrainResult:
        """Train to the last epoch, or until SIGINT or SIGTERM.

        Args:
            resume: go on from the newest complete checkpoint in the run folder; without one, start
                from scratch. Without ``resume``, a folder with a checkpoint is refused.

        Raises:
            RunExistsError: the folder holds a checkpoint and ``resume`` is False.
            CheckpointError: a checkpoint cannot be written, or does not fit this run.
            NonFiniteLossError: a loss or the gradient is NaN or infinite.
        """
        self._begin(resume)
        try:
            with self._stop, self.progress:
                self.progress.start(self.state.step, self.total_steps)
                while self.state.epoch < self.options.epochs and not self._stop.requested:
                    self._train_epoch()
                    if not self._stop.requested:
                        self._end_epoch()
                self._save_checkpoint()
                finished = self.state.epoch >= self.options.epochs
                if finished:
                    self._save_weights("final.safetensors")
        finally:
            for logger in self.loggers:
                logger.close()
        status: Literal["finished", "interrupted"] = "finished" if finished else "interrupted"
        _log.info("training %s at step %d in %s", status, self.state.step, self.run_dir)
        return TrainResult(status, self.state.step, self.state.epoch, self.state.best)

    def _train_epoch(self) -> None:
        """Take the steps that the epoch still lacks; a signal ends it early."""
        self.model.train()
        first = self.state.step_in_epoch
        if first == self.state.steps_per_epoch:  # resumed between last step and evaluation
            return
        start_batch = first * self.options.accumulate
        with preserved_rng(self.device):  # see _next_batches
            batches = self.loader.epoch(self.state.epoch, start_batch)
        for _ in range(first, self.state.steps_per_epoch):
            started = time.perf_counter()
            step_batches = self._next_batches(batches)
            waited = time.perf_counter() - started
            lr = self._set_lr()
            self._train_step(step_batches, lr)
            self.state.step += 1
            images = sum(len(batch) for batch in step_batches)
            self.state.window.add_time(images, time.perf_counter() - started, waited)
            self._show_step(lr)
            if self.state.step % self.options.checkpoint_every == 0:
                self._save_checkpoint()
            if self._stop.requested:
                return

    def _train_step(self, batches: list[Batch], lr: float) -> None:
        """One update of the weights from the batches that have images."""
        usable = [batch for batch in batches if len(batch) > 0]
        if len(usable) < len(batches):
            _log.warning(
                "step %d: %d of %d batches are empty, none of their images was readable",
                self.state.step + 1,
                len(batches) - len(usable),
                len(batches),
            )
        if not usable:
            return
        gradient = self.updater.compute_gradient(usable)
        if gradient.problem is not None:
            step, epoch = self.state.step + 1, self.state.epoch + 1
            dump = write_dump(
                self.run_dir, step=step, epoch=epoch, lr=lr, batches=usable, gradient=gradient
            )
            raise NonFiniteLossError(
                f"step {step} (epoch {epoch}, lr {lr:g}): {gradient.problem}. Images, losses and "
                f"norm are in {dump}. Lower the learning rate, lengthen the warm-up or set "
                "clip_norm; if it is always the same images, look at their annotations."
            )
        self.updater.apply()
        self.state.window.add(gradient.means | {"grad_norm": gradient.norm})

    def _next_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The batches of the next step: ``accumulate`` of them, fewer at the end of an epoch."""
        done = self.state.step_in_epoch * self.options.accumulate
        wanted = min(self.options.accumulate, len(self.loader) - done)
        # A loader may seed its workers from the global generators; the model's draws may not
        # depend on whether it did so here or, after a resume, somewhere else.
        with preserved_rng(self.device):
            taken = list(islice(batches, wanted))
        if len(taken) < wanted:
            raise RuntimeError(
                f"the loader ended epoch {self.state.epoch} after {done + len(taken)} batches, "
                f"but its length is {len(self.loader)}"
            )
        return taken

    def _set_lr(self) -> float:
        """Set every group's rate for the coming step; returns the first group's."""
        factor = self.schedule(self.state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _show_step(self, lr: float) -> None:
        row: Row = {
            "kind": "train",
            "step": self.state.step,
            "epoch": self.state.epoch + 1,
            "lr": lr,
        }
        row |= self.state.window.means()
        self.progress.step(row)
        if self.state.step % self.options.log_every == 0 or self.state.step == self.total_steps:
            self._log_row(row)
            self.state.window = Window()

    def _log_row(self, row: Row) -> None:
        for logger in self.loggers:
            logger.log(row)
        self.progress.logged(row)

    def _end_epoch(self) -> None:
        """Evaluate when it is due, then close the epoch."""
        number = self.state.epoch + 1
        is_due = number % self.options.eval_every == 0 or number == self.options.epochs
        if self.evaluate is not None and is_due:
            self._save_checkpoint()  # an evaluation is long, and a kill in it costs no step
            with preserved_rng(self.device):
                scores = self.evaluate(self.updater.averaged_model)
            flat = {f"{kind}/{key}": v for kind, part in scores.items() for key, v in part.items()}
            self._log_row({"kind": "eval", "step": self.state.step, "epoch": number, **flat})
            self._keep_best(flat, number)
        self.state.epoch = number
        self._save_checkpoint()

    def _keep_best(self, scores: Mapping[str, float], epoch: int) -> None:
        metric = self.options.best_metric
        if metric not in scores:
            raise ValueError(f"best_metric '{metric}' is none of the scores: {', '.join(scores)}")
        value = scores[metric]
        if math.isfinite(value) and (self.state.best is None or value > self.state.best.value):
            self.state.best = Best(metric=metric, value=value, step=self.state.step, epoch=epoch)
            self._save_weights("best.safetensors")

    def _save_weights(self, name: str) -> None:
        best = self.state.best
        about = {
            "instseg_version": __version__,
            "step": self.state.step,
            "best": None if best is None else best.model_dump(),
        }
        metadata = {METADATA_KEY: json.dumps(self.weights_metadata | about)}
        save_weights(self.run_dir / name, self.updater.averaged_model.state_dict(), metadata)

    def _begin(self, resume: bool) -> None:
        """Start from scratch or from the newest checkpoint."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self._checkpoints.exists() and not resume:
            raise RunExistsError(
                f"{self.run_dir} holds a checkpoint of an earlier run: pass --resume to go on from "
                "it, or choose another output folder"
            )
        seed_everything(self.options.seed)
        if resume and not self._load_checkpoint():
            _log.info("no checkpoint in %s: starting from scratch", self.run_dir)
        for logger in self.loggers:
            logger.rewind(self.state.step, self.state.epoch)

    def _load_checkpoint(self) -> bool:
        """Take over the newest complete checkpoint; False if there is none."""
        found = self._checkpoints.load()
        if found is None:
            return False
        path, tensors, header = found
        self.state.load(path, tensors, header)
        self._saved_at = (self.state.step, self.state.epoch)
        _log.info("resumed from %s at step %d", path, self.state.step)
        return True

    def _save_checkpoint(self) -> None:
        """Save the state, unless that was done at this very point."""
        point = (self.state.step, self.state.epoch)
        if self._saved_at != point:
            self._checkpoints.save(*self.state.snapshot())
            self._saved_at = point
