"""Batches of keys: complete, deterministic, grouped."""

import itertools

import pytest

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
        return TrainBatchSampler([WIDE] * 30, 4, seed=seed).batches(epoch)

    assert order(1, 2) == order(1, 2)
    assert indices(order(1, 2)) != indices(order(1, 3))
    assert indices(order(1, 2)) != indices(order(2, 2))
    sampler = TrainBatchSampler([WIDE] * 30, 4, seed=1)
    sampler.batches(0)
    assert sampler.batches(2) == order(1, 2)  # whatever came before


def test_eval_sampler_goes_in_order():
    sampler = EvalSampler(5, 2)
    assert sampler.batches(0) == [
        [SampleKey(0, 0), SampleKey(0, 1)],
        [SampleKey(0, 2), SampleKey(0, 3)],
        [SampleKey(0, 4)],
    ]
    assert len(sampler) == 3
    assert len(EvalSampler(4, 2)) == 2
    assert EvalSampler(0, 2).batches(0) == []


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
    whole = EvalSampler(9, 2).batches(0)
    parts = [EvalSampler(9, 2, rank=r, world_size=world_size) for r in range(world_size)]
    dealt = [part.batches(0) for part in parts]
    assert [len(part) for part in parts] == [len(batches) for batches in dealt]
    together = [batch for batches in dealt for batch in batches]
    assert sorted(together, key=lambda batch: batch[0].index) == whole
    with pytest.raises(ValueError, match="rank must be in 0"):
        EvalSampler(9, 2, rank=world_size, world_size=world_size)
