"""Batches of keys: complete, deterministic, grouped."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from instseg.data.epoch_order import Occurrences, RepeatFactor, repeat_factors
from instseg.data.sampling import EvalSampler, SampleKey, TrainBatchSampler, sample_seed

WIDE, TALL, SQUARE = (10, 20), (20, 10), (15, 15)


def indices(batches):
    return [[key.index for key in batch] for batch in batches]


def flat(batches):
    return [key.index for batch in batches for key in batch]


def test_sample_seed_differs_in_every_argument():
    seeds = {sample_seed(*k) for k in itertools.product(range(10), repeat=3)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2, 3, 0) == sample_seed(1, 2, 3)
    assert len({sample_seed(1, 2, 3, repeat) for repeat in range(50)}) == 50
    # Seeds of more than 32 bits must not run into the epoch.
    assert len({sample_seed(2**32 * a, b, 0) for a in range(9) for b in range(9)}) == 81


def test_sample_seed_never_changes():
    """A run resumed under a newer version of the package or of numpy relies on it."""
    assert [sample_seed(0, 0, 0), sample_seed(7, 3, 11)] == [
        1317536309490288386,
        4054959398496146356,
    ]


@pytest.mark.parametrize("aspect_grouping", [False, True])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31])
def test_every_image_comes_once_an_epoch(count, aspect_grouping):
    sizes = [TALL if i % 3 == 0 else WIDE for i in range(count)]
    sampler = TrainBatchSampler(sizes, 4, seed=1, aspect_grouping=aspect_grouping)
    for epoch in range(5):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler) == -(-count // 4)
        assert [len(b) for b in batches[:-1]] == [4] * (len(batches) - 1)
        assert sorted(flat(batches)) == list(range(count))
        assert {key.epoch for batch in batches for key in batch} == {epoch}


@pytest.mark.parametrize("aspect_grouping", [False, True])
def test_drop_last_leaves_out_the_unfilled_batch_and_nobody_for_ever(aspect_grouping):
    sizes = [WIDE] * 7 + [TALL] * 6  # 3 and 2 left over of batches of 4: one full, one image
    sampler = TrainBatchSampler(sizes, 4, seed=1, aspect_grouping=aspect_grouping, drop_last=True)
    left_out = []
    for epoch in range(60):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler) == 3
        assert all(len(batch) == 4 for batch in batches)
        seen = flat(batches)
        assert len(set(seen)) == 12
        left_out += set(range(13)) - set(seen)
    assert len(set(left_out)) == 13  # landscape and portrait alike


def test_groups_mix_only_in_the_batches_of_leftovers():
    sizes = ([WIDE, SQUARE] * 20)[:21] + [TALL] * 14
    sampler = TrainBatchSampler(sizes, 4, seed=0)
    for epoch in range(10):
        batches = indices(sampler.batches(epoch))
        assert len(batches) == 9
        kinds = [{sizes[i] == TALL for i in batch} for batch in batches]
        # 21 = 5 x 4 + 1 and 14 = 3 x 4 + 2: eight pure batches, and the last of 3.
        assert [len(kind) for kind in kinds[:8]] == [1] * 8
        assert sum(kind == {False} for kind in kinds[:8]) == 5
        assert len(batches[8]) == 3
    # The two kinds come mixed over the epoch, not one after the other.
    orders = {tuple(sizes[b[0]] == TALL for b in indices(sampler.batches(e))) for e in range(10)}
    assert len(orders) > 3


def test_without_grouping_kinds_share_batches():
    sizes = [WIDE] * 20 + [TALL] * 20
    batches = indices(TrainBatchSampler(sizes, 4, seed=0, aspect_grouping=False).batches(0))
    assert sum(len({sizes[i] for i in batch}) == 2 for batch in batches) > 4


def test_epochs_are_functions_of_seed_and_epoch():
    def order(seed, epoch):
        return list(TrainBatchSampler([WIDE] * 30, 4, seed=seed).batches(epoch))

    assert order(1, 2) == order(1, 2)
    assert indices(order(1, 2)) != indices(order(1, 3))
    assert indices(order(1, 2)) != indices(order(2, 2))
    sampler = TrainBatchSampler([WIDE] * 30, 4, seed=1)
    sampler.batches(0)
    assert list(sampler.batches(2)) == order(1, 2)  # whatever came before


def test_eval_sampler_goes_in_order():
    sampler = EvalSampler(5, 2)
    assert list(sampler.batches(0)) == [
        [SampleKey(0, 0), SampleKey(0, 1)],
        [SampleKey(0, 2), SampleKey(0, 3)],
        [SampleKey(0, 4)],
    ]
    assert len(sampler) == 3
    assert len(EvalSampler(4, 2)) == 2
    assert list(EvalSampler(0, 2).batches(0)) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainBatchSampler([], 2, seed=0), "no images to train on"),
        (lambda: TrainBatchSampler([WIDE], 0, seed=0), "batch_size must be at least 1, got 0"),
        (lambda: EvalSampler(3, 0), "batch_size must be at least 1, got 0"),
        (
            lambda: TrainBatchSampler([WIDE] * 3, 4, seed=0, drop_last=True),
            "3 images do not fill one batch of 4",
        ),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_whole_batches(world_size: int) -> None:
    whole = list(EvalSampler(9, 2).batches(0))
    parts = [EvalSampler(9, 2, rank=r, world_size=world_size) for r in range(world_size)]
    dealt = [part.batches(0) for part in parts]
    assert [len(part) for part in parts] == [len(batches) for batches in dealt]
    together = [batch for batches in dealt for batch in batches]
    assert sorted(together, key=lambda batch: batch[0].index) == whole
    with pytest.raises(ValueError, match="rank must be in 0"):
        EvalSampler(9, 2, rank=world_size, world_size=world_size)


def batches_by_hand(sizes, batch_size, order):
    """The batches of one epoch by a plain loop over the images in their order."""
    full, waiting = [], {False: [], True: []}
    for index in order:
        group = waiting[sizes[index] == TALL]
        group.append(index)
        if len(group) == batch_size:
            full.append(list(group))
            group.clear()
    left = {*waiting[False], *waiting[True]}
    rest = [index for index in order if index in left]
    return full + [rest[i : i + batch_size] for i in range(0, len(rest), batch_size)]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_batches_are_those_of_a_plain_loop(batch_size):
    """Nor do they change from one version to the next: a resumed epoch goes on with them."""
    sizes = [TALL if i % 3 == 0 else WIDE for i in range(31)]
    sampler = TrainBatchSampler(sizes, batch_size, seed=5)
    for epoch in range(4):
        rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(epoch,)))
        order = rng.permutation(31).tolist()
        assert indices(sampler.batches(epoch)) == batches_by_hand(sizes, batch_size, order)


def test_parts_of_an_epoch_are_those_of_the_whole():
    batches = TrainBatchSampler([WIDE] * 10 + [TALL] * 13, 3, seed=0).batches(1)
    whole = list(batches)
    assert (len(batches), batches[2], batches[-1]) == (8, whole[2], whole[-1])
    for part in (slice(3, None), slice(1, None, 2), slice(None, None, -1), slice(9, None)):
        assert list(batches[part]) == whole[part]
        assert len(batches[part]) == len(whole[part])
    assert list(batches[2:][1::2]) == whole[2:][1::2]  # a process's share of what is left
    with pytest.raises(IndexError):
        batches[8]


def test_a_repeated_image_has_other_keys():
    factors = np.array([1.0, 3.0, 2.0, 1.0])
    sampler = TrainBatchSampler([WIDE] * 4, 3, seed=0, order=RepeatFactor(factors))
    for epoch in range(5):
        keys = [key for batch in sampler.batches(epoch) for key in batch]
        assert Counter(key.index for key in keys) == {0: 1, 1: 3, 2: 2, 3: 1}
        for index, count in ((0, 1), (1, 3), (2, 2)):  # counted in the order they come
            assert [k.repeat for k in keys if k.index == index] == list(range(count))


def test_epochs_of_a_varying_draw_have_equal_numbers_of_batches():
    """Factors 1.5: 7 images make 10 or 11 draws, hence 5 batches of 2, or one image left out."""
    sizes = [WIDE, TALL, WIDE, TALL, WIDE, WIDE, TALL]
    order = RepeatFactor(np.full(7, 1.5))
    assert {len(order.draw(0, epoch)) for epoch in range(30)} == {10, 11}
    sampler = TrainBatchSampler(sizes, 2, seed=0, order=order)
    for epoch in range(30):
        batches = indices(sampler.batches(epoch))
        assert [len(batch) for batch in batches] == [2] * len(sampler) == [2] * 5
        mixed = [batch for batch in batches if len({sizes[i] for i in batch}) == 2]
        assert len(mixed) <= 1  # aspect grouping holds for repeated images too


def test_nearly_two_million_images_take_little_memory():
    count = 1_700_000
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(count), 2)
    labels = (rng.pareto(1.0, 2 * count) * 3).astype(np.int64).clip(max=364)
    occurrences = Occurrences.of_objects(images, labels, count)
    sizes = np.stack([rng.integers(300, 700, count), rng.integers(300, 700, count)], axis=1)
    order = RepeatFactor(repeat_factors(occurrences, 0.01))
    sampler = TrainBatchSampler(sizes, 16, seed=0, order=order)
    tracemalloc.start()
    batches = sampler.batches(3)
    assert len(batches) == len(sampler)
    assert len(batches[-2]) == 16
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 60e6  # a list of keys would take 500 MB
    assert peak < 250e6
