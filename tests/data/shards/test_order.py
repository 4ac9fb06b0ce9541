"""The order of training by shards."""

from pathlib import Path

import numpy as np
import pytest

from instseg.data.epoch_order import Shuffle
from instseg.data.shards.open import open_shards
from instseg.data.shards.order import ByShard, shard_numbers

from .helpers import member_paths


def windows_of(order: ByShard, drawn) -> list[set[int]]:
    shards = order.shards[drawn]
    return [set(shards[start : start + 20].tolist()) for start in range(0, len(shards), 20)]


def test_an_order_by_shards_stays_in_its_windows():
    shards = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 10))
    order = ByShard(Shuffle(np.arange(100)), shards, window=2)
    drawn = order.draw(7, 0)
    assert len(order) == 100
    assert sorted(drawn.tolist()) == list(range(100))
    windows = windows_of(order, drawn)
    assert [len(window) for window in windows] == [2] * 5
    assert set().union(*windows) == set(range(10))
    # Within a window the shards are mixed.
    assert 3 < np.count_nonzero(np.diff(shards[drawn[:20]])) < 19
    assert np.array_equal(order.draw(7, 0), drawn)
    assert windows_of(order, order.draw(7, 1)) != windows
    assert windows_of(order, order.draw(8, 0)) != windows


def test_an_order_by_shards_keeps_what_the_order_below_draws():
    class Repeating:
        def __len__(self):
            return 8

        def draw(self, seed, epoch):
            return np.array([3, 1, 3, 0, 5, 1, 4, 3])

    shards = np.array([0, 0, 1, 1, 2, 2])
    everything = ByShard(Repeating(), shards, window=3)
    assert everything.draw(0, 0).tolist() == [3, 1, 3, 0, 5, 1, 4, 3]
    alone = ByShard(Repeating(), shards, window=1).draw(0, 0).tolist()
    parts = {0: [1, 0, 1], 1: [3, 3, 3], 2: [5, 4]}
    order = list(dict.fromkeys(shards[alone].tolist()))
    assert alone == [index for shard in order for index in parts[shard]]
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        ByShard(Repeating(), shards, window=0)


def test_shard_numbers(written, tmp_path):
    *_, folder = written
    paths = member_paths(open_shards(str(folder), cache=tmp_path))
    numbers = shard_numbers(paths.values())
    assert numbers.tolist() == sorted(numbers.tolist())
    assert set(numbers.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"a\.jpg is no member of a shard"):
        shard_numbers([Path("a.jpg")])
