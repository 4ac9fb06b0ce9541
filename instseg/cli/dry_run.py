"""`instseg train --dry-run`: what a training would do and take, in two of its steps."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from instseg.cli.dry_run_tables import (
    batch_rows,
    batch_table,
    parameter_table,
    quantities,
    rate_table,
    size,
)
from instseg.cli.learner import Learner, build_learner
from instseg.config.build import build_device, build_options
from instseg.config.build_parts import Parts, build_parts
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config
from instseg.engine.distributed import rank_and_size
from instseg.engine.errors import NonFiniteLossError
from instseg.engine.evaluate import evaluate
from instseg.engine.memory import PeakMemory
from instseg.engine.options import TrainerOptions
from instseg.engine.progress import NoProgress
from instseg.engine.protocols import Batch, Loader, Row
from instseg.engine.trainer import Trainer

_STEPS = 2
"""The first warms caches, allocators and worker processes up; the second is timed."""


def dry_run(config: Config, console: Console | None = None) -> int:
    """Do two steps, the evaluation of one batch and a checkpoint, and print what they tell.

    Everything is built and run as a training does it, in a temporary folder beside the output,
    which is gone afterwards; a run that is in the output folder stays as it is.

    Args:
        config: of the training.
        console: to print on; None for stdout.

    Returns:
        The exit status: 0, or 3 where a signal stopped it.

    Raises:
        ConfigError: there is too little room for the run's files, or the configuration cannot be
            used.
        NonFiniteLossError: a loss or the gradient is NaN or infinite.
        AnnotationError, FormatError, ImageError, EngineError: see their messages.
    """
    console = console or Console()
    if rank_and_size()[1] > 1:
        raise ConfigError("--dry-run looks at one process: start it without torchrun")
    replicas = config.train.replicas or 1
    options = build_options(config, replicas)
    parts = build_parts(config)
    names = [category["name"] for category in parts.categories]
    memory = PeakMemory(build_device(config))
    learner = build_learner(config, names, len(parts.train_loader), replicas=replicas)
    model, optimizer, schedule = learner.model, learner.optimizer, learner.schedule
    steps = -(-len(parts.train_loader) // options.accumulate)
    console.print(f"{parts.summary}, on {learner.device}")
    console.print(learner.description)
    console.print(parameter_table(model))
    warmup = config.train.schedule.warmup_steps
    console.print(rate_table(optimizer, schedule, warmup, steps * options.epochs))

    rehearsal = _Rehearsal(config, options, parts, memory)
    with _scratch_folder(config.output) as folder:
        if not rehearsal.run(learner, Path(folder)):
            return 3
    console.print(batch_table(rehearsal.batch))
    losses = {k: v for k, v in rehearsal.first_step.items() if k.startswith("loss")}
    console.print(
        quantities("losses of the first step", {k: f"{v:.4g}" for k, v in losses.items()})
    )
    console.print(_time_table(rehearsal, steps))
    console.print(_space_table(rehearsal, config.output))
    _check_space(rehearsal, config.output)
    return 0


@dataclass
class _Rehearsal:
    """The steps, and what was measured in them.

    Args:
        config: of the training.
        options: of the training.
        parts: its data and evaluator.
        memory: measures since before the model was made.
        batch: a row for each image of the first batch.
        first_step: figures of the first step.
        step_seconds: of the second step, with the wait for its data.
        score_seconds: of the evaluation of one batch.
        train_peak: bytes, of the steps; None where the system does not tell.
        score_peak: likewise, of the evaluation.
        checkpoint_bytes: size of the file.
        weights_bytes: likewise.
    """

    config: Config
    options: TrainerOptions
    parts: Parts
    memory: PeakMemory
    batch: list[tuple[str, str, str]] = field(default_factory=list)
    first_step: dict[str, float] = field(default_factory=dict)
    step_seconds: float = 0.0
    score_seconds: float = 0.0
    train_peak: int | None = None
    score_peak: int | None = None
    checkpoint_bytes: int = 0
    weights_bytes: int = 0

    def run(self, learner: Learner, folder: Path) -> bool:
        """Take the steps with files in ``folder``; False where a signal stopped them."""
        clock = _Clock()
        batches = _FirstBatches(self.parts.train_loader, _STEPS * self.options.accumulate)
        trainer = Trainer(
            learner.model,
            learner.optimizer,
            learner.schedule,
            batches,
            options=replace(
                self.options, epochs=1, eval_every=1, log_every=1, checkpoint_every=_STEPS + 1
            ),
            run_dir=folder,
            evaluate=self._score,
            loggers=[clock],
            freeze=None if learner.freeze is None else learner.freeze.at_its_end(learner.model),
            weights_metadata=describe_weights(inference_config(self.config), self.parts.categories),
            progress=NoProgress(),
        )
        try:
            with _quiet():
                finished = trainer.run().status == "finished"
        except NonFiniteLossError as error:
            # What it says of files is of the folder that goes now.
            raise NonFiniteLossError(
                "a loss or the gradient is NaN or infinite in the first two steps. A training "
                "keeps what it saw then in its output folder: start one without --dry-run"
            ) from error
        if finished:
            self.batch = batches.first
            self.first_step = clock.rows[0]
            self.step_seconds = clock.times[1] - clock.times[0]
            self.checkpoint_bytes = (folder / "last.safetensors").stat().st_size
            self.weights_bytes = (folder / "final.safetensors").stat().st_size
        return finished

    def _score(self, model: nn.Module) -> dict[str, dict[str, float]]:
        self.train_peak = self.memory.peak()
        self.memory.restart()
        started = time.perf_counter()
        scores = evaluate(
            model,
            _FirstBatches(self.parts.val_loader, 1),
            self.parts.evaluator,
            device=build_device(self.config),
            amp=self.config.train.amp,
        )
        self.score_seconds = time.perf_counter() - started
        self.score_peak = self.memory.peak()
        return {kind: dict(result.stats) for kind, result in scores.items()}


class _FirstBatches:
    """The first batches of a loader as an epoch; where it has fewer, its epochs one by one."""

    def __init__(self, loader: Loader, number: int) -> None:
        self._loader = loader
        self._number = number
        self.first: list[tuple[str, str, str]] = []

    def __len__(self) -> int:
        return self._number

    def epoch(
        self, epoch: int, start_batch: int = 0, *, positions: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """See `instseg.engine.protocols.Loader`; the whole is asked for, by one process."""
        assert (epoch, start_batch, positions) == (0, 0, None)
        batches = chain.from_iterable(self._loader.epoch(i) for i in count())
        for batch in islice(batches, self._number):
            self.first = self.first or batch_rows(batch)
            yield batch


class _Clock:
    """Notes each training row and when it came."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.times: list[float] = []

    def rewind(self, step: int, epoch: int) -> None:
        """Nothing was kept before."""

    def log(self, row: Row) -> None:
        """Keep a training row."""
        if row["kind"] == "train":
            self.rows.append(row)
            self.times.append(time.perf_counter())

    def close(self) -> None:
        """There is no file."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the trainer's reports of a training that is none."""
    logger = logging.getLogger(Trainer.__module__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _time_table(run: _Rehearsal, steps: int) -> Table:
    epochs, every = run.options.epochs, run.options.eval_every
    scoring = run.score_seconds * len(run.parts.val_loader)
    evaluations = -(-epochs // every)
    epoch = steps * run.step_seconds
    total = epochs * epoch + evaluations * scoring
    return quantities(
        "time, estimated from one step and one batch of the evaluation",
        {
            "step": _duration(run.step_seconds),
            f"epoch of {steps} steps": _duration(epoch),
            f"evaluation of {len(run.parts.val_loader)} batches": _duration(scoring),
            f"training of {epochs} epochs, {evaluations} evaluations": _duration(total),
        },
    )


def _space_table(run: _Rehearsal, output: Path) -> Table:
    peaks = {"peak in training": run.train_peak, "peak in evaluation": run.score_peak}
    needed, free = _space(run, output)
    return quantities(
        "memory and files",
        {name: "unknown on this system" if b is None else size(b) for name, b in peaks.items()}
        | {
            "checkpoint": size(run.checkpoint_bytes),
            "weights": size(run.weights_bytes),
            "room for the run's files": size(needed),
            "free on the disk": size(free),
        },
    )


def _space(run: _Rehearsal, output: Path) -> tuple[int, int]:
    """Bytes that the run's files will take more than now, at most; and bytes that are free.

    Two checkpoints are kept while a third is written, and the best and the final weights.
    """
    kept = ("last", "previous", "best", "final")
    files = [output / f"{name}.safetensors" for name in kept]
    there = sum(file.stat().st_size for file in files if file.is_file())
    needed = 3 * run.checkpoint_bytes + 2 * run.weights_bytes - there
    return max(0, needed), shutil.disk_usage(_existing(output)).free


def _check_space(run: _Rehearsal, output: Path) -> None:
    needed, free = _space(run, output)
    if needed > free:
        raise ConfigError(
            f"{output}: the run needs {size(needed)} for two checkpoints, a third while it is "
            f"written, and two files of weights, but {size(free)} are free: make room, or choose "
            "another --output"
        )


def _scratch_folder(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the disk of the run, which goes when it is left."""
    folder = _existing(output.absolute().parent)
    return tempfile.TemporaryDirectory(prefix=".dry-run-", dir=folder)


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
