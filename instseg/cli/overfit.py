"""`instseg train --overfit N`: whether model and data can learn at all, in minutes."""

from __future__ import annotations

import glob
import json
from itertools import islice

from instseg.config.build import build_options, learns_masks, read_index
from instseg.config.build_data import read_pairs
from instseg.config.build_shards import open_shard_source
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_data import ShuffleSamplingConfig
from instseg.config.schema_semantic import Pix2PixConfig
from instseg.config.schema_source import ImagePairsSource, ShardsSource
from instseg.engine.distributed import rank_and_size

UPDATES = 300
"""Updates of the weights: enough for a handful of images, and a few minutes on a CPU."""

_WARMUP = 20
_LOG_EVERY = 10
_LEARNT = 0.5
"""Score from which on the images are learnt: AP, Jaccard index or whatever chooses the best; of
pictures the structural similarity."""


def overfit(config: Config, images: int, *, updates: int = UPDATES) -> Config:
    """The same training on a few images, which it is also scored on.

    The first training images that have objects are taken, or the first pairs of pictures, all of
    them in each epoch, and resized as for predictions; nothing is augmented. There is no average
    of the weights, which would lag behind, and one evaluation, at the end. The folder is that of
    the run with ``-overfit`` to its name.

    Args:
        config: of the training.
        images: how many, at least 1; all there are, where that is less.
        updates: of the weights, about.

    Raises:
        ConfigError: ``images`` is out of range, or no image has an object.
        AnnotationError, FormatError, ImageError, OSError: see `read_index` and `read_pairs`.
    """
    if images < 1:
        raise ConfigError(f"--overfit must be at least 1 image, got {images}")
    source = config.data.train
    names = _first_names(config, images)
    changes = {"include": [glob.escape(name) for name in names], "exclude": None, "fold": None}
    if isinstance(source, ImagePairsSource):
        changes["jitter"] = None
    chosen = source.model_copy(update=changes)
    data = config.data.model_copy(
        update={
            "train": chosen,
            "val": chosen,
            "train_transforms": list(config.data.val_transforms),
            "copy_paste": None,
            "mosaic": None,
            "mixup": None,
            "plain_epochs": 0,
            "sampling": ShuffleSamplingConfig(name="shuffle"),
            "shard_window": None,
            "batch_size": min(config.data.batch_size, len(names)),
        }
    )
    replicas = config.train.replicas or rank_and_size()[1]
    per_epoch = -(-len(names) // (data.batch_size * config.train.accumulate * replicas))
    epochs = -(-updates // per_epoch)
    warmup = min(config.train.schedule.warmup_steps, _WARMUP)
    train = config.train.model_copy(
        update={
            "epochs": epochs,
            "eval_every": epochs,
            "log_every": min(config.train.log_every, _LOG_EVERY),
            "ema_decay": None,
            "schedule": config.train.schedule.model_copy(update={"warmup_steps": warmup}),
        }
    )
    output = config.output.with_name(f"{config.output.name}-overfit")
    return config.model_copy(update={"data": data, "train": train, "output": output})


def overfit_verdict(config: Config) -> str:
    """What a finished training of `overfit` shows.

    Of pix2pix the L1 loss and the structural similarity speak: its other losses are those of a
    contest, which need not fall.

    Args:
        config: that `overfit` gave.
    """
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pictures = isinstance(config.model, Pix2PixConfig)
    loss = "loss_l1" if pictures else "loss"
    losses = [row[loss] for row in rows if row["kind"] == "train" and loss in row]
    metric = "image/ssim" if pictures else build_options(config).best_metric
    score = next(row[metric] for row in reversed(rows) if row["kind"] == "eval")
    if score is None or not losses:
        return (
            f"{metric} cannot be told from these images: choose another train.best_metric, or more "
            "images."
        )
    first, last = losses[0], losses[-1]
    images = len(config.data.train.include or [])
    facts = (
        f"The {'L1 ' if pictures else ''}loss went from {first:.4g} to {last:.4g}; {metric} on the "
        f"{images} images is {score:.3f}."
    )
    if score >= _LEARNT:
        return f"{facts} Model and data can learn."
    if last < first / 2:
        suspects = "whether the pairs match" if pictures else "the classes and data.val_transforms"
        return (
            f"{facts} The loss falls, but what is predicted is not what is asked for: look at the "
            f"predictions (tools/predict.py), and check {suspects}."
        )
    suspects = "whether the pairs match" if pictures else "the annotations (tools/dataset.py check)"
    return (
        f"{facts} The model does not learn these images: try another train.optimizer.lr, and check "
        f"{suspects}."
    )


def _first_names(config: Config, number: int) -> list[str]:
    """File names, as `include` knows them, of the first images to learn from."""
    source = config.data.train
    if isinstance(config.model, Pix2PixConfig):
        return [pair.name for pair in read_pairs(source)[:number]]
    index = read_index(source, need_masks=learns_masks(config))
    with_objects = (
        image
        for image, record in zip(index.records.coco_images(), index.records, strict=True)
        if not record.is_crowd.all()
    )
    chosen = list(islice(with_objects, number))
    if not chosen:
        raise ConfigError(f"data.train has no object to learn from: {index.summary()}")
    if isinstance(source, ShardsSource):  # where a record names the member of a shard
        images = open_shard_source(source).coco()["images"]
        names = {image["id"]: image["file_name"] for image in images}
        return [names[image["id"]] for image in chosen]
    return [str(image["file_name"]) for image in chosen]
