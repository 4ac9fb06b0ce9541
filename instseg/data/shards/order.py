"""An order of training that stays within few shards for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instseg.data.epoch_order import EpochOrder, Indices, generator
from instseg.data.shards.members import split_member

_SHARDS = 2**32  # sets the stream of shards apart from those of epochs and samples


@dataclass(frozen=True)
class ByShard:
    """The images that ``order`` draws, in another order: some shards after some others.

    The shards are shuffled and dealt into windows of ``window``; the images of a window come
    together, in the order in which they were drawn. So at any time no more than the shards of two
    windows are in use.

    Args:
        order: draws the images, shuffled.
        shards: ``int64 [images]``, the number of each image's shard, from 0.
        window: shards that are mixed, at least 1. All of them: the order is that of ``order``.

    Raises:
        ValueError: ``window`` is less than 1.
    """

    order: EpochOrder
    shards: Indices
    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    def __len__(self) -> int:
        return len(self.order)

    def draw(self, seed: int, epoch: int) -> Indices:
        """As `EpochOrder.draw`."""
        drawn = self.order.draw(seed, epoch)
        places = generator(seed, _SHARDS, epoch, 0, 0).permutation(int(self.shards.max()) + 1)
        return drawn[np.argsort(places[self.shards[drawn]] // self.window, kind="stable")]


def shard_numbers(paths: Iterable[Path]) -> Indices:
    """The number of each image's shard, ``int64 [images]``, counted in the order of their names.

    Raises:
        ValueError: an image is no member of a shard.
    """
    numbers: dict[str, int] = {}
    found = []
    for path in paths:
        shard, member = split_member(path)
        if member is None:
            raise ValueError(f"{path} is no member of a shard: the order by shards is for those")
        found.append(numbers.setdefault(str(shard), len(numbers)))
    ranks = np.empty(len(numbers), dtype=np.int64)
    ranks[[numbers[name] for name in sorted(numbers)]] = np.arange(len(numbers))
    return ranks[np.array(found, dtype=np.int64)]
