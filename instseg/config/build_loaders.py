"""From a configuration to loaders of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from instseg.config.build_data import (
    build_read_mixes,
    build_transformed_mixes,
    build_transforms,
)
from instseg.config.build_device import build_device
from instseg.config.build_maps import build_target
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_data import (
    ClassAwareSamplingConfig,
    DataConfig,
    SamplingConfig,
    ShuffleSamplingConfig,
)
from instseg.config.schema_semantic import SemanticConfig
from instseg.config.schema_source import ImagePairsSource
from instseg.data.dataset import DetectionDataset, Sample
from instseg.data.epoch_order import (
    ClassAware,
    EpochOrder,
    Occurrences,
    RepeatFactor,
    Shuffle,
    repeat_factors,
)
from instseg.data.image_pairs import ImagePair, ImagePairs, Jitter
from instseg.data.index import CocoIndex
from instseg.data.loader import DetectionLoader
from instseg.data.records import Records
from instseg.data.sampling import EvalSampler, TrainBatchSampler
from instseg.data.shards.order import ByShard, shard_numbers
from instseg.engine.distributed import rank_and_size
from instseg.structures import Instances, SemanticMap
from instseg.structures.geometry import Size


def build_train_loader(config: Config, index: CocoIndex) -> DetectionLoader:
    """Shuffled, augmented batches of the training part.

    Raises:
        ConfigError: no image has an object to learn from, or all epochs are plain ones.
    """
    if config.data.plain_epochs >= config.train.epochs:
        raise ConfigError(
            f"data.plain_epochs is {config.data.plain_epochs}, but the whole training has only "
            f"{config.train.epochs} epochs: lower it, or train for more epochs"
        )
    if not index.records.has_object:
        raise ConfigError(f"data.train has no object to learn from: {index.summary()}")
    data, seed = config.data, config.train.seed
    dataset = DetectionDataset(
        index.records,
        build_transforms(data.train_transforms),
        seed=seed,
        with_masks=learns_masks(config),
        mix_read=build_read_mixes(data),
        mix_read_epochs=config.train.epochs - data.plain_epochs,
        mix_transformed=build_transformed_mixes(data),
        on_error=data.on_error,
        decode=data.decode,
        make_target=_make_target(config, index),
        **_image_kind(config),
    )
    order = _by_shard(data, index.records, _make_order(data.sampling, index.records))
    return _train_loader(config, dataset, index.records.sizes, order)


def build_val_loader(config: Config, index: CocoIndex) -> DetectionLoader:
    """Every image of the validation part once, in order; in a process group this one's share."""
    dataset = DetectionDataset(
        index.records,
        build_transforms(config.data.val_transforms),
        seed=config.train.seed,
        with_masks=False,
        on_error=config.data.on_error,
        **_image_kind(config),
    )
    return _val_loader(config, dataset, len(index.records))


def build_train_pair_loader(config: Config, pairs: Sequence[ImagePair]) -> DetectionLoader:
    """Shuffled batches of pairs of pictures, with their jitter.

    Raises:
        ConfigError: ``data.sampling`` goes by objects, which pictures do not have.
    """
    if config.data.sampling != ShuffleSamplingConfig(name="shuffle"):
        raise ConfigError(
            f"data.sampling: {config.data.sampling.name} goes by the objects of the images, and "
            "pairs of pictures have none: leave it out"
        )
    for key, plain in (("decode", "full"), ("shard_window", None), ("on_defect", "skip")):
        if getattr(config.data, key) != plain:
            raise ConfigError(f"data.{key} means nothing for pairs of pictures: leave it out")
    source = config.data.train
    assert isinstance(source, ImagePairsSource)
    jitter = None if source.jitter is None else Jitter(**source.jitter.model_dump())
    dataset = ImagePairs(
        pairs, seed=config.train.seed, jitter=jitter, on_error=config.data.on_error
    )
    return _train_loader(config, dataset, [pair.size for pair in pairs])


def build_val_pair_loader(config: Config, pairs: Sequence[ImagePair]) -> DetectionLoader:
    """Every pair of pictures once, in order; in a process group this one's share."""
    dataset = ImagePairs(pairs, seed=config.train.seed, on_error=config.data.on_error)
    return _val_loader(config, dataset, len(pairs))


def _make_target(config: Config, index: CocoIndex) -> Callable[[Instances], SemanticMap] | None:
    if not isinstance(config.model, SemanticConfig):
        return None
    return build_target(config, len(index.class_names))


def _image_kind(config: Config) -> dict[str, Any]:
    return {
        "channels": config.model.image_channels,
        "bits16": "keep" if config.model.image_bits == 16 else "scale",
    }


def _make_order(sampling: SamplingConfig, records: Records) -> EpochOrder | None:
    """Which images make up an epoch; None for every one once."""
    keep_empty = sampling.keep_empty
    if isinstance(sampling, ShuffleSamplingConfig) and keep_empty:
        return None
    occurrences = _occurrences(records)
    if isinstance(sampling, ShuffleSamplingConfig):
        return Shuffle(occurrences.kept(keep_empty=False))
    if isinstance(sampling, ClassAwareSamplingConfig):
        return ClassAware(occurrences, keep_empty=keep_empty)
    return RepeatFactor(repeat_factors(occurrences, sampling.threshold, keep_empty=keep_empty))


def _by_shard(data: DataConfig, records: Records, order: EpochOrder | None) -> EpochOrder | None:
    """The order with the images of a few shards at a time, where that is wanted."""
    if data.shard_window is None:
        return order
    try:
        shards = shard_numbers(records.path(i) for i in range(len(records)))
    except ValueError as error:
        raise ConfigError(f"data.shard_window: {error}") from None
    return ByShard(order or Shuffle(np.arange(len(records))), shards, data.shard_window)


def _occurrences(records: Records) -> Occurrences:
    """Which classes there are to learn from in which images: those of objects, not of crowds."""
    columns = records.columns
    is_object = columns["is_crowd"] == 0
    images = columns["image"][is_object].astype(np.int64)
    labels = columns["label"][is_object].astype(np.int64)
    return Occurrences.of_objects(images, labels, len(records))


def _train_loader(
    config: Config,
    dataset: Dataset[Sample | None],
    sizes: Sequence[Size] | npt.NDArray[np.int32],
    order: EpochOrder | None = None,
) -> DetectionLoader:
    sampler = TrainBatchSampler(
        sizes,
        config.data.batch_size,
        seed=config.train.seed,
        order=order,
        aspect_grouping=config.data.aspect_grouping,
    )
    return _loader(config, dataset, sampler)


def _val_loader(config: Config, dataset: Dataset[Sample | None], images: int) -> DetectionLoader:
    rank, world_size = rank_and_size()
    sampler = EvalSampler(images, config.data.val_batch_size, rank=rank, world_size=world_size)
    return _loader(config, dataset, sampler)


def _loader(
    config: Config, dataset: Dataset[Sample | None], sampler: TrainBatchSampler | EvalSampler
) -> DetectionLoader:
    return DetectionLoader(
        dataset,
        sampler,
        num_workers=config.data.workers,
        start_method=config.data.start_method,
        on_worker_fault=config.data.on_worker_fault,
        worker_timeout=config.data.worker_timeout,
        pin_memory=build_device(config).type == "cuda",
    )


def learns_masks(config: Config) -> bool:
    """Whether targets need masks: for objects with masks, or to be painted on class maps."""
    return config.model.predicts_masks or isinstance(config.model, SemanticConfig)
