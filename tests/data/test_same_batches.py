"""COCO files and shards, any number of workers however started: the same batches bit for bit."""

import pytest

from instseg.config.build_data import read_index
from instseg.config.schema_source import CocoSource, ShardsSource
from instseg.data.dataset import DetectionDataset
from instseg.data.epoch_order import Shuffle
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import TrainBatchSampler
from instseg.data.shards.order import ByShard, shard_numbers
from instseg.data.transforms import (
    Compose,
    Mosaic,
    PhotometricDistort,
    RandomCrop,
    RandomHorizontalFlip,
    SimpleCopyPaste,
)
from tests.data.shard_set import serving, write_set
from tests.data.small_set import contents

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a data set that is there as a COCO file and as shards."""
    folder = tmp_path_factory.mktemp("set")
    write_set(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTSEG_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def truth(written):
    """Two epochs of the COCO file without workers."""
    return run(coco_source(written))


def coco_source(folder) -> CocoSource:
    return CocoSource(format="coco", annotations=folder / "coco.json", images=folder / "images")


def shard_source(place, **settings) -> ShardsSource:
    return ShardsSource(format="shards", folder=str(place), **settings)


def make_loader(source, num_workers=0, method=None, window=None) -> DetectionLoader:
    records = read_index(source, need_masks=True).records
    dataset = DetectionDataset(
        records,
        Compose([RandomCrop(0.5, 1.0), RandomHorizontalFlip(), PhotometricDistort()]),
        seed=4,
        with_masks=True,
        mix_read=[Mosaic((40, 48), p=0.5)],
        mix_transformed=[SimpleCopyPaste(p=0.5)],
    )
    order = None
    if window is not None:
        numbers = shard_numbers(record.path for record in records)
        order = ByShard(Shuffle(records.image_ids.argsort().argsort()), numbers, window)
    sampler = TrainBatchSampler([r.size for r in records], 2, seed=4, order=order)
    return DetectionLoader(dataset, sampler, num_workers=num_workers, start_method=method)


def run(source, *settings, start=0, **options) -> list:
    loader = make_loader(source, *settings, **options)
    return [[bits(batch) for batch in loader.epoch(epoch, start)] for epoch in (0, 1)]


def bits(batch) -> list:
    """All that a batch holds but the paths, to compare bit for bit."""
    return [
        [(tuple(image.shape), image.numpy().tobytes()) for image in batch.images],
        [contents(target) for target in batch.targets],
        batch.image_ids,
        batch.original_sizes,
    ]


def test_shards_give_the_batches_of_the_coco_file(written, truth):
    assert truth[0] != truth[1]
    assert [len(epoch) for epoch in truth] == [4, 4]
    assert run(shard_source(written / "shards")) == truth


@pytest.mark.parametrize(
    ("num_workers", "method"),
    [
        (1, "fork"),
        (4, "fork"),
        (4, "forkserver"),
        pytest.param(1, "spawn", marks=pytest.mark.slow),
        pytest.param(4, "spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_change_no_batch(written, truth, num_workers, method):
    assert run(coco_source(written), num_workers, method) == truth
    assert run(shard_source(written / "shards"), num_workers, method) == truth


def test_workers_change_no_batch_of_an_epoch_begun_midway(written, truth):
    rest = [epoch[2:] for epoch in truth]
    assert run(shard_source(written / "shards"), 4, "fork", start=2) == rest


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("download", [False, True])
def test_workers_read_remote_shards(written, truth, method, download):
    with serving(written / "shards") as server:
        source = shard_source(server.url, download=download)
        assert run(source, 2, method) == truth


def test_the_order_by_shards_is_the_same_with_workers(written):
    shards = shard_source(written / "shards")
    alone = run(shards, window=2)
    assert run(shards, 2, window=2) == alone
    assert run(shards, 2, window=2, start=3) == [epoch[3:] for epoch in alone]
