"""Which samples make up which batch, and the seed of each: pure functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from instseg.structures.geometry import Size

_T = TypeVar("_T")


@dataclass(frozen=True)
class SampleKey:
    """What a sample is a pure function of, together with the seed of its data set."""

    epoch: int
    index: int


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed, 0 to 2^63 - 1, of one sample's random draws.

    A hash by numpy's ``SeedSequence`` (O'Neill's seed_seq_fe), whose values numpy promises not to
    change; epoch and index are its spawn key, so that neighbours have unrelated streams.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, index))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


class BatchSampler(Protocol):
    """What `instseg.data.loader.DetectionLoader` reads."""

    batch_size: int

    def batches(self, epoch: int) -> list[list[SampleKey]]:
        """The keys of every batch of an epoch, in order."""
        ...

    def __len__(self) -> int:
        """Batches in an epoch, the same for each."""
        ...


class TrainBatchSampler:
    """Shuffled batches; every image comes once an epoch.

    With ``aspect_grouping`` a batch holds only landscape images (width >= height) or only portrait
    ones, which saves padding. What is left over of the two groups is merged, in shuffled order,
    into the last batches of the epoch, so that grouping leaves no image out and makes no more
    batches.

    Args:
        sizes: (height, width) of every image.
        batch_size: images in a batch.
        seed: of the shuffling.
        aspect_grouping: as above.
        drop_last: leave out the last batch of an epoch where it is not full; the images left out
            differ from epoch to epoch.

    Raises:
        ValueError: there is no image, or fewer than one batch with ``drop_last``.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        batch_size: int,
        *,
        seed: int,
        aspect_grouping: bool = True,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not sizes:
            raise ValueError("the data set has no images to train on")
        if drop_last and len(sizes) < batch_size:
            raise ValueError(
                f"{len(sizes)} images do not fill one batch of {batch_size}, and drop_last leaves "
                "out what does not: use a smaller batch_size or drop_last=False"
            )
        self.batch_size = batch_size
        self._seed = seed
        self._drop_last = drop_last
        self._groups = [aspect_grouping and height > width for height, width in sizes]

    def __len__(self) -> int:
        full, rest = divmod(len(self._groups), self.batch_size)
        return full + (rest > 0 and not self._drop_last)

    def batches(self, epoch: int) -> list[list[SampleKey]]:
        """The keys of every batch of ``epoch``, in order."""
        shuffled = _permutation(len(self._groups), self._seed, epoch)
        batches: list[list[int]] = []
        waiting: dict[bool, list[int]] = {False: [], True: []}
        for index in shuffled:
            group = waiting[self._groups[index]]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        left_over = {*waiting[False], *waiting[True]}
        mixed = [index for index in shuffled if index in left_over]
        batches += _chunks(mixed, self.batch_size)
        return [[SampleKey(epoch, index) for index in batch] for batch in batches[: len(self)]]


class EvalSampler:
    """Every image once, in the order of the data set; the last batch may be smaller.

    Args:
        num_samples: images of the data set.
        batch_size: images of a batch.
        rank: which of the processes this is.
        world_size: how many processes share the batches. Whole batches are dealt out, so that an
            image has the same neighbours, hence the same padding, whatever their number.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.batch_size = batch_size
        self._num_samples = num_samples
        self._part = slice(rank, None, world_size)

    def __len__(self) -> int:
        return len(range(-(-self._num_samples // self.batch_size))[self._part])

    def batches(self, epoch: int) -> list[list[SampleKey]]:
        """The keys of every batch, in order; ``epoch`` is only passed on to the samples."""
        keys = [SampleKey(epoch, i) for i in range(self._num_samples)]
        return _chunks(keys, self.batch_size)[self._part]


def _permutation(length: int, seed: int, epoch: int) -> list[int]:
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order: list[int] = generator.permutation(length).tolist()
    return order


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
