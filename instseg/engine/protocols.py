"""What the engine asks of the parts it does not know: loaders, evaluators, loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from instseg.structures.geometry import Size

Row = dict[str, Any]
"""One line of the metrics: ``kind`` ("train" or "eval"), ``step``, ``epoch`` (from 1), figures."""

EvaluateFn = Callable[[nn.Module], Mapping[str, Mapping[str, float]]]
"""Scores a model: ``{"segm": {"AP": ..., "AP50": ...}}``, logged as ``segm/AP``."""

ScheduleFn = Callable[[int], float]
"""The factor on the base learning rates for update number ``step`` (from 0); has a telling repr."""


ScoresT = TypeVar("ScoresT", bound="Scores")


class PerImage(Protocol):
    """What is known or predicted of one image: `Instances`, a `SemanticMap`, another picture."""

    @property
    def image_size(self) -> Size:
        """(height, width) of the image."""

    def to(self, device: torch.device | str) -> Self:
        """The same with every tensor on ``device``."""

    def resized(self, size: Size) -> Self:
        """The same for the image resized to ``size`` (height, width)."""


class Batch(Protocol):
    """B images with what is known of them; B is 0 when every image was left out as unreadable."""

    @property
    def images(self) -> Sequence[Tensor]:
        """B tensors ``[C, H, W]`` of any sizes, as the model takes them."""

    @property
    def targets(self) -> Sequence[PerImage]:
        """B targets, in the coordinates of the images."""

    @property
    def image_ids(self) -> Sequence[int]:
        """The data set's image ids."""

    @property
    def original_sizes(self) -> Sequence[Size]:
        """(height, width) of the images as they lie on the disk."""

    @property
    def paths(self) -> Sequence[str | Path]:
        """The image files."""

    def __len__(self) -> int: ...


class Loader(Protocol):
    """Batches whose content is a function of the seed, the epoch and the position alone."""

    def __len__(self) -> int:
        """Batches in an epoch, the same for every epoch."""

    def epoch(
        self, epoch: int, start_batch: int = 0, *, positions: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 0), beginning with number ``start_batch`` (from 0).

        With ``positions`` (rising, from ``start_batch`` on) only the batches of these numbers: the
        share of one of several processes.
        """


class Scores(Protocol):
    """The result of one kind of evaluation."""

    @property
    def stats(self) -> Mapping[str, float]:
        """Named summary numbers: ``{"AP": ..., "AP50": ...}``."""


class Evaluator(Protocol[ScoresT]):
    """Collects predictions and scores them."""

    def reset(self) -> None:
        """Forget all predictions."""

    def update(self, image_ids: Sequence[int], predictions: Sequence[Any]) -> None:
        """Take the predictions for some images, in the original images' coordinates."""

    def merge(self, other: Self) -> None:
        """Take over what another process's evaluator has seen and this one has not."""

    def compute(self) -> dict[str, ScoresT]:
        """The scores by kind: ``{"bbox": ..., "segm": ...}``."""


class MetricLogger(Protocol):
    """Keeps rows of metrics."""

    def rewind(self, step: int, epoch: int) -> None:
        """Forget rows from after the point where ``step`` updates and ``epoch`` epochs were done.

        Called once before training: with (0, 0) when it starts from scratch, with the checkpoint's
        point on resume, so that no row is doubled.
        """

    def log(self, row: Row) -> None:
        """Keep one row."""

    def close(self) -> None:
        """Write out what is still in memory."""
