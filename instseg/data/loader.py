"""Batches of samples, made by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from instseg.data.dataset import Sample, Target
from instseg.data.image_io import ImageError
from instseg.data.packing import Packed
from instseg.data.sampling import BatchSampler, SampleKey
from instseg.data.watched_loader import WatchedLoader
from instseg.data.worker import init_worker
from instseg.data.worker_faults import WorkerTable
from instseg.structures.geometry import Size

StartMethod = Literal["fork", "spawn", "forkserver"]


@dataclass(eq=False)
class Batch:
    """Samples side by side; each list has one entry for each image.

    Args:
        images: ``uint8`` or ``uint16`` ``[C, H, W]``, of different sizes.
        targets: what is known of each image.
        image_ids: ids in the annotation file.
        original_sizes: (height, width) before the transforms.
        paths: the image files.
    """

    images: list[Tensor]
    targets: list[Target]
    image_ids: list[int]
    original_sizes: list[Size]
    paths: list[str]

    @classmethod
    def from_samples(cls, samples: Sequence[Sample]) -> Batch:
        """Line up samples; none at all gives an empty batch."""
        return cls(
            images=[s.image for s in samples],
            targets=[s.target for s in samples],
            image_ids=[s.image_id for s in samples],
            original_sizes=[s.original_size for s in samples],
            paths=[s.path for s in samples],
        )

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """The batch with its images in page-locked memory, for quick copies to a GPU."""
        return replace(self, images=[image.pin_memory() for image in self.images])


class DetectionLoader:
    """Epochs of batches from a data set, the same whatever the number of workers.

    A batch holds the samples that its keys stand for, less those the data set skips: a batch that
    is skipped whole comes out empty, so that the count of steps does not depend on broken files.

    Args:
        dataset: the samples by `SampleKey`, such as a `DetectionDataset`.
        sampler: which of them make up which batch.
        num_workers: worker processes, which live as long as the loader; 0 works in this process.
        pin_memory: give the images in page-locked memory.
        start_method: how Python makes the workers; None for its default. "fork" is the quickest,
            but a process that has threads or a GPU in use is safer with the others; these send the
            data set to each worker, which must be able to be pickled.
        on_worker_fault: what a worker does that dies or hangs: "stop" raises, "restart" starts new
            workers at the first batch that was not given, which changes no batch.
        worker_timeout: seconds without any progress of any worker, while a batch is waited for,
            after which they count as hung, and are killed; None waits for good. Longer than the
            longest sample, and than a worker's start, takes.

    Raises:
        ValueError: ``worker_timeout`` is not positive.
    """

    def __init__(
        self,
        dataset: Dataset[Sample | None],
        sampler: BatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: StartMethod | None = None,
        on_worker_fault: Literal["stop", "restart"] = "stop",
        worker_timeout: float | None = None,
    ) -> None:
        if worker_timeout is not None and worker_timeout <= 0:
            raise ValueError(f"worker_timeout must be positive, got {worker_timeout}")
        self.batch_size = sampler.batch_size
        self._dataset = dataset
        self._sampler = sampler
        self._pin_memory = pin_memory
        self._watched: WatchedLoader | None = None
        if num_workers > 0:
            make = partial(_make_loader, dataset, num_workers, pin_memory, start_method)
            self._watched = WatchedLoader(
                make,
                num_workers,
                name=partial(_name_sample, dataset),
                on_fault=on_worker_fault,
                timeout=worker_timeout,
            )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self._sampler)

    def epoch(
        self, epoch: int, start_batch: int = 0, *, positions: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start_batch`` on; earlier ones are not decoded.

        With workers one epoch runs at a time: starting another ends it.

        Args:
            epoch: from 0.
            start_batch: from 0; up to ``len(self)``, which gives no batch.
            positions: rising numbers of batches of the epoch: only these, less those before
                ``start_batch``, are prepared and given (one process's share). None for all.

        Raises:
            ValueError: ``start_batch`` is not in 0..len(self), or ``positions`` do not rise within
                0..len(self) - 1.
            ImageError: (while iterating) an image cannot be read and the data set does not skip.
            WorkerError: (while iterating) a worker died or hung, and new ones are not to be started
                or fared no better.
        """
        numbers = self._numbers(start_batch, positions)
        return map(_unpacked, self._start(_Chosen(self._sampler.batches(epoch), numbers)))

    def _start(self, batches: Sequence[list[SampleKey]]) -> Iterator[Packed | Batch | _Unreadable]:
        if self._watched is not None:
            return self._watched.run(batches)
        return iter(
            DataLoader(
                _Items(self._dataset),
                batch_sampler=batches,
                collate_fn=_collate,
                pin_memory=self._pin_memory,
                generator=torch.Generator(),
            )
        )

    def _numbers(self, start_batch: int, positions: Sequence[int] | None) -> Sequence[int]:
        """The batches to prepare, by their numbers in the epoch."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(
                f"start_batch must be in 0..{len(self)}, the batches of an epoch, got {start_batch}"
            )
        if positions is None:
            return range(start_batch, len(self))
        if any(not 0 <= number < len(self) for number in positions) or any(
            later <= earlier for earlier, later in pairwise(positions)
        ):
            raise ValueError(
                f"positions must be rising batch numbers in 0..{len(self) - 1}, "
                f"got {list(positions)[:8]}"
            )
        return [number for number in positions if number >= start_batch]


class _Chosen(Sequence[list[SampleKey]]):
    """Some of the batches of an epoch, whose keys are made when they are asked for."""

    def __init__(self, batches: Sequence[list[SampleKey]], numbers: Sequence[int]) -> None:
        self._batches = batches
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Chosen(self._batches, self._numbers[place])
        return self._batches[self._numbers[place]]


@dataclass(frozen=True)
class _Unreadable:
    """What an `ImageError` says, on its way between processes: exceptions rebuild from one text."""

    path: Path
    reason: str


class _Items(Dataset[Sample | _Unreadable | None]):
    """The data set for torch's loader: gives what an `ImageError` says instead of raising it.

    Torch turns whatever a worker raises into a new error around a printed traceback. As an item it
    reaches the training process, which raises the same error with or without workers.

    Args:
        dataset: the samples.
        table: where a worker notes which sample it is at; None in the training process.
    """

    def __init__(self, dataset: Dataset[Sample | None], table: WorkerTable | None = None) -> None:
        self._dataset = dataset
        self._table = table

    def __getitem__(self, key: SampleKey) -> Sample | _Unreadable | None:
        worker = get_worker_info()
        if worker is None or self._table is None:
            return self._read(key)
        self._table.begin(worker.id, key)
        try:
            return self._read(key)
        finally:
            self._table.end(worker.id)

    def _read(self, key: SampleKey) -> Sample | _Unreadable | None:
        try:
            return self._dataset[key]
        except ImageError as error:
            return _Unreadable(error.path, str(error).removeprefix(f"{error.path}: "))


def _make_loader(
    dataset: Dataset[Sample | None],
    num_workers: int,
    pin_memory: bool,
    start_method: StartMethod | None,
    sampler: Sampler[list[SampleKey]],
    table: WorkerTable,
) -> DataLoader[Any]:
    """Torch's loader with worker processes that live as long as it does."""
    if start_method == "forkserver":  # imports torch once, not for each worker
        get_context("forkserver").set_forkserver_preload([__name__])
    return DataLoader(
        _Items(dataset, table),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_packed,
        pin_memory=pin_memory,
        worker_init_fn=partial(init_worker, os.getpid(), table),
        persistent_workers=True,
        multiprocessing_context=start_method,
        # Starting an iterator draws a number: not from the training's global generator.
        generator=torch.Generator(),
    )


def _collate(items: Sequence[Sample | _Unreadable | None]) -> Batch | _Unreadable:
    for item in items:
        if isinstance(item, _Unreadable):
            return item
    return Batch.from_samples([item for item in items if isinstance(item, Sample)])


def _packed(items: Sequence[Sample | _Unreadable | None]) -> Packed:
    return Packed.pack(_collate(items))


def _unpacked(item: Packed | Batch | _Unreadable) -> Batch:
    content = item.unpack() if isinstance(item, Packed) else item
    if isinstance(content, _Unreadable):
        raise ImageError(content.path, content.reason)
    assert isinstance(content, Batch)
    return content


def _name_sample(dataset: Dataset[Sample | None], key: SampleKey) -> str:
    """The sample in words, with its file where the data set has records of them."""
    records = getattr(dataset, "records", None)
    path = None if records is None else getattr(records[key.index], "path", None)
    file = "" if path is None else f" ({path}, or an image that was mixed into it)"
    return f"sample {key.index} of epoch {key.epoch}{file}"
