"""Which samples make up which batch, and the seed of each: pure functions of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
import numpy.typing as npt

from instseg.data.epoch_order import EpochOrder, Indices, Shuffle
from instseg.structures.geometry import Size


@dataclass(frozen=True)
class SampleKey:
    """What a sample is a pure function of, together with the seed of its data set.

    Args:
        epoch: from 0.
        index: of the image in the data set.
        repeat: how often the image came before in the epoch.
    """

    epoch: int
    index: int
    repeat: int = 0


def sample_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The seed, 0 to 2^63 - 1, of one sample's random draws.

    A hash by numpy's ``SeedSequence`` (O'Neill's seed_seq_fe), whose values numpy promises not to
    change; epoch and index (and repeat, but for 0) are its spawn key, so that neighbours have
    unrelated streams.
    """
    key = (epoch, index, repeat) if repeat else (epoch, index)
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


class BatchSampler(Protocol):
    """What `instseg.data.loader.DetectionLoader` reads."""

    batch_size: int

    def batches(self, epoch: int) -> Sequence[list[SampleKey]]:
        """The keys of every batch of an epoch, in order; parts of it cost nothing to take."""
        ...

    def __len__(self) -> int:
        """Batches in an epoch, the same for each."""
        ...


class Batches(Sequence[list[SampleKey]]):
    """The batches of an epoch; their keys are made when they are asked for, and slices lazily.

    Args:
        epoch: of all keys.
        indices: ``int64 [N]``, the images one batch after the other.
        batch_size: images of a batch; the last one has what is left.
        numbers: which of the batches are in the sequence; None for all.
    """

    def __init__(
        self,
        epoch: int,
        indices: Indices,
        batch_size: int,
        *,
        repeats: Indices | None = None,
        numbers: range | None = None,
    ) -> None:
        self._epoch = epoch
        self._indices = indices
        self._repeats = _repeats(indices) if repeats is None else repeats
        self._batch_size = batch_size
        self._numbers = range(-(-len(indices) // batch_size)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> list[SampleKey]: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> list[SampleKey] | Batches:
        if isinstance(place, slice):
            return Batches(
                self._epoch,
                self._indices,
                self._batch_size,
                repeats=self._repeats,
                numbers=self._numbers[place],
            )
        start = self._numbers[place] * self._batch_size
        part = slice(start, start + self._batch_size)
        pairs = zip(self._indices[part].tolist(), self._repeats[part].tolist(), strict=True)
        return [SampleKey(self._epoch, index, repeat) for index, repeat in pairs]


class TrainBatchSampler:
    """Batches of the images that an `EpochOrder` draws; by default every image once, shuffled.

    With ``aspect_grouping`` a batch holds only landscape images (width >= height) or only portrait
    ones, which saves padding. What is left over of the two groups is merged, in shuffled order,
    into the last batches of the epoch, so that grouping leaves no image out and makes no more
    batches.

    Every epoch has as many batches as the order's length takes. Where the order draws one image
    more and this would make another batch, the last one drawn is left out.

    Args:
        sizes: (height, width) of every image; a list or an integer array ``[images, 2]``.
        batch_size: images in a batch.
        seed: of the shuffling.
        order: which images, how often; None for every image once, shuffled.
        aspect_grouping: as above.
        drop_last: leave out the last batch of an epoch where it is not full; the images left out
            differ from epoch to epoch.

    Raises:
        ValueError: there is no image, or fewer than one batch with ``drop_last``.
    """

    def __init__(
        self,
        sizes: Sequence[Size] | npt.NDArray[np.integer],
        batch_size: int,
        *,
        seed: int,
        order: EpochOrder | None = None,
        aspect_grouping: bool = True,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(sizes) == 0:
            raise ValueError("the data set has no images to train on")
        self._order = Shuffle(np.arange(len(sizes))) if order is None else order
        if drop_last and len(self._order) < batch_size:
            raise ValueError(
                f"{len(self._order)} images do not fill one batch of {batch_size}, and drop_last "
                "leaves out what does not: use a smaller batch_size or drop_last=False"
            )
        self.batch_size = batch_size
        self._seed = seed
        self._drop_last = drop_last
        heights, widths = np.asarray(sizes).T
        self._is_portrait = heights > widths if aspect_grouping else None

    def __len__(self) -> int:
        full, rest = divmod(len(self._order), self.batch_size)
        return full + (rest > 0 and not self._drop_last)

    def batches(self, epoch: int) -> Batches:
        """The keys of every batch of ``epoch``, in order."""
        most = -(-len(self._order) // self.batch_size) * self.batch_size
        drawn = self._order.draw(self._seed, epoch)[:most]
        if self._is_portrait is not None:
            drawn = drawn[_grouped(self._is_portrait[drawn], self.batch_size)]
        return Batches(epoch, drawn, self.batch_size)[: len(self)]


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

    def batches(self, epoch: int) -> Batches:
        """The keys of every batch, in order; ``epoch`` is only passed on to the samples."""
        return Batches(epoch, np.arange(self._num_samples), self.batch_size)[self._part]


def _grouped(is_portrait: npt.NDArray[np.bool_], batch_size: int) -> Indices:
    """The order of places that fills batches of one kind each, in the order they become full.

    What does not fill a batch of its kind comes at the end, in the order it came in.
    """
    full: list[Indices] = []
    left: list[Indices] = []
    for places in (np.flatnonzero(~is_portrait), np.flatnonzero(is_portrait)):
        cut = len(places) // batch_size * batch_size
        full.append(places[:cut].reshape(-1, batch_size))
        left.append(places[cut:])
    batches = np.concatenate(full)
    batches = batches[np.argsort(batches[:, -1])]
    return np.concatenate([batches.ravel(), np.sort(np.concatenate(left))])


def _repeats(indices: Indices) -> Indices:
    """For each place, how often its index came before."""
    if len(indices) == 0 or np.bincount(indices).max() == 1:
        return np.zeros(len(indices), dtype=np.int64)
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.diff(starts, append=len(ordered))
    repeats = np.empty(len(indices), dtype=np.int64)
    repeats[order] = np.arange(len(ordered)) - np.repeat(starts, counts)
    return repeats
