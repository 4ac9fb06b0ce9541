"""A training small enough to be killed a hundred times: model, loader and trainer for the tests."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.optim import build_optimizer
from instseg.engine.options import TrainerOptions
from instseg.engine.schedule import MultiStep
from instseg.engine.trainer import Trainer
from instseg.structures import Instances

TIMES = ("images_per_second", "data_wait")
"""Figures that depend on the clock and so differ between equal runs."""


class TinyModel(nn.Module):
    """Two losses that depend on weights, images and every global random generator."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        for parameter in [*self.conv.parameters(), *self.head.parameters()]:
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, images: list[Tensor], targets: list[Instances] | None = None) -> Any:
        x = torch.stack([image.float() / 255 for image in images])
        if targets is None:
            y = self.head(self.norm(self.conv(x)).mean((2, 3)))
            return [self._detection(scores, image) for scores, image in zip(y, images, strict=True)]
        assert self.training
        x = x + 0.1 * torch.rand_like(x) + 0.01 * random.random() + 0.01 * np.random.normal()
        y = self.head(self.norm(self.conv(x)).mean((2, 3))) * self.frozen
        wanted = torch.stack([target.boxes.mean(0)[:2] for target in targets]) / 8
        return {"loss_fit": (y - wanted).square().mean(), "loss_size": y.abs().mean()}

    def _detection(self, scores: Tensor, image: Tensor) -> Instances:
        size = (image.shape[1], image.shape[2])
        boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
        return Instances(size, boxes, torch.zeros(1, dtype=torch.int64), scores[:1].sigmoid())


@dataclass
class TinyBatch:
    images: list[Tensor]
    targets: list[Instances]
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.images)


def make_batch(ids: Sequence[int]) -> TinyBatch:
    """Images that depend on their ids alone."""
    images, targets = [], []
    for index in ids:
        generator = torch.Generator().manual_seed(1000 + index)
        images.append(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator))
        corner = torch.rand(1, 2, generator=generator) * 4
        boxes = torch.cat([corner, corner + 3], dim=1)
        targets.append(Instances((8, 8), boxes, torch.zeros(1, dtype=torch.int64)))
    return TinyBatch(images, targets, list(ids), [(16, 24)] * len(ids), [f"{i}.png" for i in ids])


@dataclass
class TinyLoader:
    """Shuffled batches through torch's `DataLoader`, which seeds itself from the global generator.

    Args:
        images: number of images.
        batch_size: images a batch.
        workers: processes that make the batches.
        delay: seconds a batch takes to arrive.
        empty: (epoch, batch) pairs that arrive without images.
        on_batch: called before each batch is given out, with its number over all epochs.
    """

    images: int = 10
    batch_size: int = 2
    workers: int = 0
    delay: float = 0.0
    empty: frozenset[tuple[int, int]] = frozenset()
    on_batch: Callable[[int], None] | None = None
    started: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def epoch(
        self, epoch: int, start_batch: int = 0, *, positions: Sequence[int] | None = None
    ) -> Iterator[TinyBatch]:
        self.started.append((epoch, start_batch))
        number = -(-self.images // self.batch_size)
        positions = range(start_batch, number) if positions is None else positions
        order = torch.randperm(self.images, generator=torch.Generator().manual_seed(epoch)).tolist()
        groups = [order[i : i + self.batch_size] for i in range(0, self.images, self.batch_size)]
        groups = [[] if (epoch, i) in self.empty else ids for i, ids in enumerate(groups)]
        loader: Any = DataLoader(
            [groups[position] for position in positions],  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            # A process of a fork server would ask that server for its workers: slow.
            multiprocessing_context="fork" if self.workers else None,
            collate_fn=make_batch,
        )
        for index, batch in zip(positions, loader, strict=True):
            time.sleep(self.delay)
            if self.on_batch is not None:
                self.on_batch(epoch * len(self) + index)
            yield batch


def noisy_score(model: nn.Module) -> dict[str, dict[str, float]]:
    """A score that falls and rises with the weights; disturbs all it can of the training."""
    model.eval()
    torch.rand(3), np.random.rand(2), random.random()
    total = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    return {"segm": {"AP": total % 1.0, "AP50": float("nan")}, "bbox": {"AP": 0.5}}


def make_options(**changes: Any) -> TrainerOptions:
    values: dict[str, Any] = {
        "epochs": 8,
        "seed": 3,
        "accumulate": 2,
        "clip_norm": 0.5,
        "ema_decay": 0.9,
        "eval_every": 2,
        "checkpoint_every": 2,
        "log_every": 4,
    }
    return TrainerOptions(**values | changes)


def make_trainer(
    run_dir: Path,
    *,
    options: TrainerOptions | None = None,
    loader: TinyLoader | None = None,
    model: nn.Module | None = None,
    optimizer: str = "sgd",
    lr: float = 0.05,
    **changes: Any,
) -> Trainer:
    """A trainer with every feature on; equal arguments give equal trainings."""
    model = TinyModel() if model is None else model
    arguments: dict[str, Any] = {
        "evaluate": noisy_score,
        "loggers": [JsonlLogger(run_dir / "metrics.jsonl"), CsvLogger(run_dir / "metrics.csv")],
        "weights_metadata": {"config": "epochs: 8\n", "categories": [{"id": 5, "name": "cell"}]},
    }
    return Trainer(
        model,
        build_optimizer(model, name=optimizer, lr=lr, weight_decay=0.01),  # type: ignore[arg-type]
        MultiStep((10, 18), gamma=0.1, warmup_steps=4, warmup_factor=0.1),
        TinyLoader() if loader is None else loader,
        options=options or make_options(),
        run_dir=run_dir,
        **arguments | changes,
    )


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what depends on the clock; the CSV must say the same."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    with open(run_dir / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    for cells, row in zip(table, rows, strict=True):
        for key, cell in cells.items():
            assert cell == ("" if row.get(key) is None else str(row[key])), key
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_close_rows(one: Path, other: Path) -> None:
    """The same metrics, but for the order in which sums were taken."""
    for mine, theirs in zip(read_rows(one), read_rows(other), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs[key], rel=1e-4, abs=1e-6, nan_ok=True), key
            else:
                assert value == theirs[key]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, generators, best score, metrics: everything, to the last bit."""
    for name in ("last.safetensors", "best.safetensors", "final.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert read_rows(one) == read_rows(other)


def kill_self() -> None:
    """What ``kill -9`` does: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_in_process(run_dir: Path, workers: int, delay: float, trap: str | None, count: int) -> None:
    """Train in a process that others kill, or that kills itself at a set moment.

    Args:
        run_dir: the run's folder; resumed if it has a checkpoint.
        workers: of the loader.
        delay: seconds a batch.
        trap: a key of `TRAPS`, None for none.
        count: at which call the trap snaps.
    """
    torch.set_num_threads(1)
    calls = 0

    def snaps() -> bool:
        nonlocal calls
        calls += 1
        return calls == count

    evaluate: Any = noisy_score
    if trap is not None:
        evaluate = TRAPS[trap](snaps) or evaluate
    loader = TinyLoader(workers=workers, delay=delay)
    result = make_trainer(run_dir, loader=loader, evaluate=evaluate).run(resume=True)
    (run_dir / "status").write_text(result.status)


def _trap_os(name: str, before: bool) -> Callable[[Callable[[], bool]], None]:
    """Die right before or after a call of ``os.<name>``."""

    def set_trap(snaps: Callable[[], bool]) -> None:
        original = getattr(os, name)

        def trapped(*arguments: Any) -> Any:
            snap = snaps()
            if snap and before:
                kill_self()
            result = original(*arguments)
            if snap:
                kill_self()
            return result

        setattr(os, name, trapped)

    return set_trap


def _trap_write(snaps: Callable[[], bool]) -> None:
    """Die in the middle of a metrics row."""
    import instseg.engine.loggers as loggers

    original = loggers._append

    def trapped(path: Path, text: str) -> None:
        if snaps():
            original(path, text[: len(text) // 2])
            kill_self()
        original(path, text)

    loggers._append = trapped


def _trap_evaluation(snaps: Callable[[], bool]) -> Any:
    """Die while evaluating."""

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        scores = noisy_score(model)
        if snaps():
            kill_self()
        return scores

    return evaluate


TRAPS: dict[str, Callable[[Callable[[], bool]], Any]] = {
    "before a rename": _trap_os("replace", before=True),
    "after a rename": _trap_os("replace", before=False),
    "before a file is on the disk": _trap_os("fsync", before=True),
    "in a row of metrics": _trap_write,
    "in an evaluation": _trap_evaluation,
}
