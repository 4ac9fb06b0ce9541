"""Which images make up an epoch, and in which order: pure functions of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ONE = 1 << 32  # fractions are counted in 2^-32, so that their sums are exact in any order


class EpochOrder(Protocol):
    """Draws the images of an epoch."""

    def __len__(self) -> int:
        """Images in an epoch."""

    def draw(self, seed: int, epoch: int) -> Indices:
        """The index of each image of the epoch, in order, ``int64``.

        There are ``len(self)`` of them, or one more in some epochs.
        """


@dataclass(frozen=True)
class Occurrences:
    """Which classes are in which images, each pair once.

    Args:
        images: ``int64 [P]``, index of an image, rising.
        labels: ``int64 [P]``, a class that this image has.
        num_images: images of the data set, with and without objects.
    """

    images: Indices
    labels: Indices
    num_images: int

    @classmethod
    def of_objects(cls, images: Indices, labels: Indices, num_images: int) -> Self:
        """From the image's index and the class, ``int64 [N]`` each, of every object."""
        num_classes = int(labels.max(initial=0)) + 1
        pairs = np.sort(images * num_classes + labels)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique takes many times longer
        return cls(pairs // num_classes, pairs % num_classes, num_images)

    def kept(self, *, keep_empty: bool) -> Indices:
        """The indices of all images, or of those that have a class."""
        return np.arange(self.num_images) if keep_empty else np.flatnonzero(~self.is_empty)

    @property
    def is_empty(self) -> npt.NDArray[np.bool_]:
        """``bool [num_images]``: which images have no class."""
        return np.bincount(self.images, minlength=self.num_images) == 0


@dataclass(frozen=True)
class Shuffle:
    """Every one of ``images`` (indices) once."""

    images: Indices

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, seed: int, epoch: int) -> Indices:
        """As `EpochOrder.draw`."""
        return self.images[generator(seed, epoch).permutation(len(self.images))]


def repeat_factors(
    occurrences: Occurrences, threshold: float, *, keep_empty: bool = True
) -> npt.NDArray[np.float64]:
    """How often each image comes in an epoch, on average; 0 for one that is left out.

    The factor of a class that is in a share f of the images is ``max(1, sqrt(threshold / f))``,
    that of an image the greatest of its classes, 1 without any.

    Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", repeat
    factor sampling.

    Args:
        occurrences: the classes of the images.
        threshold: t in the paper (0.001 there), in (0, 1]: classes in a greater share of the
            images are not repeated.
        keep_empty: take in the images without objects, in the shares f too.

    Raises:
        ValueError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    kept = occurrences.kept(keep_empty=keep_empty)
    counts = np.maximum(np.bincount(occurrences.labels), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold * len(kept) / counts))
    factors = np.zeros(occurrences.num_images)
    factors[kept] = 1.0
    np.maximum.at(factors, occurrences.images, of_class[occurrences.labels])
    return factors


class RepeatFactor:
    """Repeat factor sampling: images of rare classes come several times an epoch.

    An image of factor r comes floor(r) times, and once more with a chance of r - floor(r), drawn
    anew each epoch. The draw is systematic (Madow 1949): along a fresh random order of the images
    the fractions are added up from a random start, and an image comes once more where the sum
    passes a whole number. So each has its chance, while the length of an epoch is the sum of all
    factors rounded down, or one more.

    Args:
        factors: ``float64 [images]``, as `repeat_factors` gives them.

    Raises:
        ValueError: all factors are 0.
    """

    def __init__(self, factors: npt.NDArray[np.float64]) -> None:
        self._images = np.flatnonzero(factors)
        if len(self._images) == 0:
            raise ValueError("no image has an object: there is nothing to sample")
        self._whole = np.floor(factors).astype(np.int64)
        self._fraction = np.rint((factors - self._whole) * _ONE).astype(np.int64)
        self._length = int(self._whole.sum() + self._fraction.sum() // _ONE)

    def __len__(self) -> int:
        return self._length

    def draw(self, seed: int, epoch: int) -> Indices:
        """As `EpochOrder.draw`."""
        rng = generator(seed, epoch)
        order = rng.permutation(self._images)
        passed = (np.cumsum(self._fraction[order]) + rng.integers(_ONE)) // _ONE
        once_more = np.diff(passed, prepend=0)
        return rng.permutation(np.repeat(order, self._whole[order] + once_more))


class ClassAware:
    """Class-aware sampling: every class is drawn equally often, then one of its images.

    The classes come in rounds, each class once a round and in a new order each; the list of a
    class's images is gone through in random order, to its end before any image of it comes again,
    from one epoch into the next. An epoch has as many whole rounds as come nearest to the number
    of images, at least one.

    Source: Shen et al. 2016, "Relay Backpropagation for Effective Learning of Deep Convolutional
    Neural Networks", class-aware sampling.

    Args:
        occurrences: the classes of the images; a class that no image has is passed over.
        keep_empty: draw images without objects too, as if these were one more class.

    Raises:
        ValueError: no image has an object.
    """

    def __init__(self, occurrences: Occurrences, *, keep_empty: bool = False) -> None:
        if len(occurrences.images) == 0:
            raise ValueError("no image has an object: there is no class to sample")
        by_class = np.argsort(occurrences.labels, kind="stable")
        counts = np.bincount(occurrences.labels)
        lists = np.split(occurrences.images[by_class], np.cumsum(counts[counts > 0])[:-1])
        empty = np.flatnonzero(occurrences.is_empty)
        if keep_empty and len(empty) > 0:
            lists.append(empty)
        images = len(occurrences.kept(keep_empty=keep_empty))
        self._lists = lists
        self._rounds = max(1, round(images / len(lists)))

    def __len__(self) -> int:
        return self._rounds * len(self._lists)

    def draw(self, seed: int, epoch: int) -> Indices:
        """As `EpochOrder.draw`."""
        rounds = np.tile(np.arange(len(self._lists)), (self._rounds, 1))
        classes = generator(seed, epoch).permuted(rounds, axis=1)
        images = np.stack([self._images(seed, epoch, number) for number in range(len(self._lists))])
        drawn: Indices = images[classes, np.arange(self._rounds)[:, None]].ravel()
        return drawn

    def _images(self, seed: int, epoch: int, number: int) -> Indices:
        """The images that list ``number`` gives in the rounds of an epoch.

        They are cut out of an endless row of shuffled copies of the list. The row is made in
        blocks of as many copies as an epoch may need, each from a generator of its own: an epoch
        lies in two blocks at most, however short the list.
        """
        images = self._lists[number]
        copies = -(-self._rounds // len(images))
        block = copies * len(images)
        first, offset = divmod(epoch * self._rounds, block)
        row: list[Indices] = []
        for place in range(first, (first * block + offset + self._rounds - 1) // block + 1):
            # The 0 keeps these apart from the seeds of samples and epochs.
            rng = generator(seed, place, number, 0)
            row.append(rng.permuted(np.tile(images, (copies, 1)), axis=1).ravel())
        return np.concatenate(row)[offset : offset + self._rounds]


def generator(seed: int, *key: int) -> np.random.Generator:
    """A stream of random numbers for each ``key``, unrelated to those of other keys."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
