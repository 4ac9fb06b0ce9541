"""Batches of samples, made by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from instseg.data.dataset import Sample, Target
from instseg.data.image_io import ImageError
from instseg.data.sampling import BatchSampler, SampleKey
from instseg.structures.geometry import Size


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
    """

    def __init__(
        self,
        dataset: Dataset[Sample | None],
        sampler: BatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batch_size = sampler.batch_size
        self._position = _Position(sampler)
        self._loader = DataLoader(
            _ErrorsAsItems(dataset),
            batch_sampler=self._position,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=partial(_init_worker, os.getpid()),
            persistent_workers=num_workers > 0,
            # Starting an iterator draws a number: not from the training's global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self._position.sampler)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start_batch`` on; earlier ones are not decoded.

        One epoch runs at a time: starting another ends it.

        Raises:
            ValueError: ``start_batch`` is not in 0..len(self).
            ImageError: (while iterating) an image cannot be read and the data set does not skip.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(
                f"start_batch must be in 0..{len(self)}, the batches of an epoch, got {start_batch}"
            )
        self._position.epoch, self._position.start = epoch, start_batch
        return map(_raise_errors, iter(self._loader))


class _Position(Sampler[list[SampleKey]]):
    """The part of an epoch that the next iterator over the torch loader runs through.

    Torch's loader keeps its batch sampler, and with it its workers, for life.
    """

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler = sampler
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.sampler.batches(self.epoch)[self.start :])

    def __len__(self) -> int:
        return len(self.sampler) - self.start


@dataclass(frozen=True)
class _Unreadable:
    """What an `ImageError` says, on its way between processes: exceptions rebuild from one text."""

    path: Path
    reason: str


class _ErrorsAsItems(Dataset[Sample | _Unreadable | None]):
    """Gives what an `ImageError` says instead of raising it.

    Torch turns whatever a worker raises into a new error around a printed traceback. As an item it
    reaches the training process, which raises the same error with or without workers.
    """

    def __init__(self, dataset: Dataset[Sample | None]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: SampleKey) -> Sample | _Unreadable | None:
        try:
            return self._dataset[key]
        except ImageError as error:
            return _Unreadable(error.path, str(error).removeprefix(f"{error.path}: "))


def _collate(items: list[Sample | _Unreadable | None]) -> Batch | _Unreadable:
    for item in items:
        if isinstance(item, _Unreadable):
            return item
    return Batch.from_samples([item for item in items if isinstance(item, Sample)])


def _raise_errors(item: Batch | _Unreadable) -> Batch:
    if isinstance(item, _Unreadable):
        raise ImageError(item.path, item.reason)
    return item


def _init_worker(owner: int, worker_id: int) -> None:
    """One thread a worker: workers are the parallelism, and share the machine with the model."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Ctrl-C goes to every process of a terminal, and batch systems send SIGTERM to all of a job.
    # Both are for the training process, which finishes its step, saves and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Thread(target=_end_with, args=(owner,), daemon=True).start()


def _end_with(owner: int, seconds: float = 2.0) -> None:
    """End this worker when the process ``owner`` is gone, or when it asks for that by SIGTERM.

    Torch's workers watch their parent, which under "forkserver" (the default from Python 3.14 on)
    is not the training process: one that was killed would leave its workers behind for good.
    """
    while True:
        try:
            os.kill(owner, 0)
        except (ProcessLookupError, PermissionError):  # gone, or its number is another's now
            os._exit(1)
        if _terminated_by(owner, seconds):
            os._exit(0)


def _terminated_by(owner: int, seconds: float) -> bool:
    """Whether ``owner`` sends SIGTERM within ``seconds``; those of other processes do not count."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(seconds)
        return False
    received = signal.sigtimedwait({signal.SIGTERM}, seconds)
    return received is not None and received.si_pid == owner
