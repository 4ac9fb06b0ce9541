"""The training loop: epochs of steps, evaluation, checkpoints, and a resume that changes nothing.

A training is a function of its configuration alone. All that the next step depends on (weights,
optimizer, average, loss scale, place in the data, best score, running means) is in the checkpoint;
the learning rate is a function of the step, and the model's random draws are one of step and batch.
So a run that is killed and resumed ends bit-equal, on a CPU with the same number of threads and
processes, to one that was not.

Several processes share the batches of each step, and take the same step: the sequence of batches,
the learning rate and the draws are those of one process, sums alone are added in another order.
(Batch norm's running figures, by which models are scored, move once a step in each process, and are
averaged.)
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer

from instseg import __version__
from instseg.engine.black_box import BlackBox
from instseg.engine.checkpoint import Best, CheckpointFolder
from instseg.engine.distributed import (
    gather,
    is_writer,
    rank_and_size,
    sum_over_processes,
    wait_for_all,
)
from instseg.engine.early_stopping import EarlyStopping
from instseg.engine.errors import CheckpointError, RunExistsError
from instseg.engine.freeze import FreezeSchedule
from instseg.engine.nonfinite_policy import NonFinitePolicy
from instseg.engine.options import TrainerOptions
from instseg.engine.patient_logger import PatientLogger
from instseg.engine.progress import NoProgress, ProgressView, make_progress
from instseg.engine.protocols import Batch, EvaluateFn, Loader, MetricLogger, Row, ScheduleFn
from instseg.engine.sharding import Sharding
from instseg.engine.signals import StopSignals
from instseg.engine.state import TrainingState
from instseg.engine.step import Stepper
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
        train_loader: batches that depend on epoch and position alone, the same in every process.
        options: how long and how.
        run_dir: gets ``last``, ``previous``, ``best`` and ``final.safetensors``.
        evaluate: scores a model, with the same result in every process; None for no evaluation.
        loggers: get a row of metrics every ``log_every`` steps and at each evaluation.
        freeze: which parts are frozen in which epoch; None for those the model itself freezes.
        early_stopping: when a training that no longer improves ends; None for never.
        sharding: has sharded ``model`` among the processes; None where each has all of it.
        weights_metadata: configuration, class names and category ids, stored as JSON in the
            weights files so that they can be used without a configuration.
        progress: what a person sees; by default a bar on a terminal, log lines elsewhere.

    Of the processes of a group the first alone logs, shows and writes, but for the shards of a
    sharded model, of which each writes its own.

    Raises:
        ValueError: there are no batches, or fewer in a step than processes to share them.
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
        freeze: FreezeSchedule | None = None,
        early_stopping: EarlyStopping | None = None,
        sharding: Sharding | None = None,
        weights_metadata: Mapping[str, JsonValue] | None = None,
        progress: ProgressView | None = None,
    ) -> None:
        if len(train_loader) == 0:
            raise ValueError("the training loader has no batches: the data set is empty")
        self.rank, self.processes = rank_and_size()
        if self.processes > options.accumulate:
            raise ValueError(
                f"a step has {options.accumulate} batches, which {self.processes} processes cannot "
                "share: start fewer processes, or a new run with more batches a step"
            )
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = train_loader
        self.options = options
        self.run_dir = run_dir
        self.evaluate = evaluate
        self.freeze = freeze
        self.early_stopping = early_stopping
        self.loggers = [PatientLogger(logger) for logger in loggers] if is_writer() else []
        self.weights_metadata = dict(weights_metadata or {})
        self.progress = (progress or make_progress()) if is_writer() else NoProgress()
        self.updater = Updater(
            model,
            optimizer,
            seed=options.seed,
            amp=options.amp,
            clip_norm=options.clip_norm,
            ema_decay=options.ema_decay,
            on_out_of_memory=options.on_out_of_memory,
            sharding=sharding,
        )
        policy = NonFinitePolicy(
            options.on_nonfinite,
            patience=options.nonfinite_patience,
            scaled=self.updater.scaler.is_enabled(),
        )
        self.stepper = Stepper(self.updater, policy, BlackBox(run_dir, self.weights_metadata))
        self.state = TrainingState(
            self.updater,
            policy,
            batches_per_epoch=len(train_loader),
            accumulate=options.accumulate,
            schedule=repr(schedule),
            run=self.weights_metadata,
        )
        self.total_steps = options.epochs * self.state.steps_per_epoch
        self._checkpoints = CheckpointFolder(run_dir)
        self._saved_at: tuple[int, int] | None = None
        self._stop = StopSignals()
        self._stopping = False
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
                while not (self._is_over() or self._stopping):
                    self._train_epoch()
                    if not self._stopping:
                        self._end_epoch()
                self._save_checkpoint()
                finished = self._is_over()
                if finished:
                    self._save_weights("final.safetensors")
        finally:
            for logger in self.loggers:
                logger.close()
        status: Literal["finished", "interrupted"] = "finished" if finished else "interrupted"
        _log.info("training %s at step %d in %s", status, self.state.step, self.run_dir)
        return TrainResult(status, self.state.step, self.state.epoch, self.state.best)

    def _is_over(self) -> bool:
        """Whether all epochs are done, or no more of them would help."""
        state, stopping = self.state, self.early_stopping
        return state.epoch >= self.options.epochs or (
            stopping is not None
            and stopping.is_over(state.mark, epoch=state.epoch, eval_every=self.options.eval_every)
        )

    def _train_epoch(self) -> None:
        """Take the steps that the epoch still lacks; a signal ends it early."""
        if self.freeze is None:
            self.model.train()
        elif self.freeze.apply(self.model, self.state.epoch):
            self.updater.exchange.rebuild()
        first = self.state.step_in_epoch
        if first == self.state.steps_per_epoch:  # resumed between last step and evaluation
            return
        batches = self._own_batches(first * self.options.accumulate)
        for _ in range(first, self.state.steps_per_epoch):
            started = time.perf_counter()
            step_batches = self._next_batches(batches)
            waited = time.perf_counter() - started
            lr = self._set_lr()
            images = self._train_step(step_batches, lr)
            self.state.step += 1
            self.state.window.add_time(images, time.perf_counter() - started, waited)
            self._show_step(lr)
            if self.state.step % self.options.checkpoint_every == 0:
                self._save_checkpoint()
            if self._agree_to_stop():
                return

    def _train_step(self, batches: dict[int, Batch], lr: float) -> int:
        """One update of the weights from the batches that have images; returns their number."""
        in_step = range(self._batches_in_step())
        counts = sum_over_processes([len(batches.get(number, ())) for number in in_step])
        if 0 in counts and is_writer():
            _log.warning(
                "step %d: %d of %d batches are empty, none of their images was readable",
                self.state.step + 1,
                counts.count(0),
                len(counts),
            )
        if not any(counts):
            return 0
        usable = {number: batch for number, batch in batches.items() if len(batch) > 0}
        figures = self.stepper.take(
            usable, counts, step=self.state.step, epoch=self.state.epoch, lr=lr
        )
        self.state.window.add(figures)
        return sum(counts)

    def _own_batches(self, start: int) -> Iterator[Batch]:
        """This process's share of the epoch's batches, from number ``start`` on.

        Of each step's batches process r of W works on those in places r, r + W, ...
        """
        if self.processes == 1:
            return self.loader.epoch(self.state.epoch, start)
        accumulate = self.options.accumulate
        positions = [
            position
            for position in range(start, len(self.loader))
            if position % accumulate % self.processes == self.rank
        ]
        return self.loader.epoch(self.state.epoch, start, positions=positions)

    def _batches_in_step(self) -> int:
        """``accumulate``; fewer at the end of an epoch."""
        done = self.state.step_in_epoch * self.options.accumulate
        return min(self.options.accumulate, len(self.loader) - done)

    def _next_batches(self, batches: Iterator[Batch]) -> dict[int, Batch]:
        """This process's batches of the next step, by their place in it."""
        places = range(self.rank, self._batches_in_step(), self.processes)
        try:
            taken = dict(zip(places, batches, strict=False))
        except Exception:
            # An image that cannot be read or a worker that dies need not cost the steps before it.
            # (Other processes would wait here for a message about a step.)
            if self.processes == 1:
                self._save_checkpoint()
            raise
        if len(taken) < len(places):
            raise RuntimeError(
                f"the loader ended epoch {self.state.epoch} in step {self.state.step_in_epoch}, "
                f"but its length is {len(self.loader)} batches"
            )
        return taken

    def _agree_to_stop(self) -> bool:
        """Whether a signal has asked any of the processes to stop."""
        self._stopping = any(sum_over_processes([self._stop.requested is not None]))
        return self._stopping

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
            scores = self.evaluate(self.updater.averaged_model())
            flat = {f"{kind}/{key}": v for kind, part in scores.items() for key, v in part.items()}
            flat = gather(flat)[0]  # sums in another order must not part the processes
            self._log_row({"kind": "eval", "step": self.state.step, "epoch": number, **flat})
            self._keep_best(flat, number)
        self.state.epoch = number
        self._save_checkpoint()
        self._agree_to_stop()

    def _keep_best(self, scores: Mapping[str, float], epoch: int) -> None:
        metric = self.options.best_metric
        if metric not in scores:
            raise ValueError(f"best_metric '{metric}' is none of the scores: {', '.join(scores)}")
        score = Best(metric=metric, value=scores[metric], step=self.state.step, epoch=epoch)
        if self.early_stopping is not None:
            self.state.mark = self.early_stopping.mark(self.state.mark, score)
        best = self.state.best
        if math.isfinite(score.value) and (best is None or score.value > best.value):
            self.state.best = score
            self._save_weights("best.safetensors")

    def _save_weights(self, name: str) -> None:
        model = self.updater.averaged_model()
        if not is_writer():
            return
        best = self.state.best
        about = {
            "instseg_version": __version__,
            "step": self.state.step,
            "best": None if best is None else best.model_dump(),
        }
        metadata = {METADATA_KEY: json.dumps(self.weights_metadata | about)}
        save_weights(self.run_dir / name, model.state_dict(), metadata)

    def _begin(self, resume: bool) -> None:
        """Start from scratch or from the newest checkpoint."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self._checkpoints.exists() and not resume:
            raise RunExistsError(
                f"{self.run_dir} holds a checkpoint of an earlier run: pass --resume to go on from "
                "it, or choose another output folder"
            )
        if resume and not self._load_checkpoint():
            _log.info("no checkpoint in %s: starting from scratch", self.run_dir)
        for logger in self.loggers:
            logger.rewind(self.state.step, self.state.epoch)
        wait_for_all()  # the first process saves only what all have read

    def _load_checkpoint(self) -> bool:
        """Take over the newest complete checkpoint; False if there is none."""
        found = self._checkpoints.load()
        seen = gather(None if found is None else (found[2].step, found[2].epoch))
        if len(set(seen)) > 1:
            raise CheckpointError(
                f"{self.run_dir}: the processes see different checkpoints (step, epoch: {seen}); "
                "wait until the disk that they share shows the same to all, and resume"
            )
        if found is None:
            return False
        path, stored, header = found
        self.state.load(path, stored, header)
        self._saved_at = (self.state.step, self.state.epoch)
        _log.info("resumed from %s at step %d", path, self.state.step)
        return True

    def _save_checkpoint(self) -> None:
        """Save the state, unless that was done at this very point."""
        point = (self.state.step, self.state.epoch)
        if self._saved_at != point:
            self._checkpoints.save(*self.state.snapshot())
            self._saved_at = point
