"""`instseg train --overfit N`: whether model and data can learn at all, in minutes."""

from __future__ import annotations

import glob
import json
from itertools import islice

from instseg.config.build import build_options, learns_masks, read_index
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_data import ShuffleSamplingConfig
from instseg.config.schema_source import ImagePairsSource
from instseg.engine.distributed import rank_and_size

UPDATES = 300
"""Updates of the weights: enough for a handful of images, and a few minutes on a CPU."""

_WARMUP = 20
_LOG_EVERY = 10
_LEARNT = 0.5
"""Score from which on the images are learnt: AP, Jaccard index or whatever chooses the best."""


def overfit(config: Config, images: int, *, updates: int = UPDATES) -> Config:
    """The same training on a few images, which it is also scored on.

    The first training images that have objects are taken, all of them in each epoch, and resized
    as for predictions; nothing is augmented. There is no average of the weights, which would lag
    behind, and one evaluation, at the end. The folder is that of the run with ``-overfit`` to its
    name.

    Args:
        config: of the training.
        images: how many, at least 1; all there are, where that is less.
        updates: of the weights, about.

    Raises:
        ConfigError: ``images`` is out of range, no image has an object, or the model learns from
            pairs of pictures, which have no names to be chosen by.
        AnnotationError, FormatError, OSError: see `read_index`.
    """
    if images < 1:
        raise ConfigError(f"--overfit must be at least 1 image, got {images}")
    source = config.data.train
    if isinstance(source, ImagePairsSource):
        raise ConfigError(
            f"--overfit chooses images with objects; for pairs of pictures make a folder of a few "
            f"of {source.folder}, and name it as data.train and data.val"
        )
    names = _first_names(config, images)
    chosen = source.model_copy(
        update={"include": [glob.escape(name) for name in names], "exclude": None, "fold": None}
    )
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

    Args:
        config: that `overfit` gave.
    """
    lines = (config.output / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["loss"] for row in rows if row["kind"] == "train" and "loss" in row]
    metric = build_options(config).best_metric
    score = next(row[metric] for row in reversed(rows) if row["kind"] == "eval")
    if score is None or not losses:
        return (
            f"{metric} cannot be told from these images: choose another train.best_metric, or more "
            "images."
        )
    first, last = losses[0], losses[-1]
    source = config.data.train
    assert not isinstance(source, ImagePairsSource)
    images = len(source.include or [])
    facts = (
        f"The loss went from {first:.4g} to {last:.4g}; {metric} on the {images} images is "
        f"{score:.3f}."
    )
    if score >= _LEARNT:
        return f"{facts} Model and data can learn."
    if last < first / 2:
        return (
            f"{facts} The loss falls, but what is predicted is not what is asked for: look at the "
            "predictions (tools/predict.py), at the classes, and at data.val_transforms."
        )
    return (
        f"{facts} The model does not learn these images: try another train.optimizer.lr, and check "
        "the annotations (tools/dataset.py check)."
    )


def _first_names(config: Config, number: int) -> list[str]:
    """File names, as `include` knows them, of the first images with objects."""
    index = read_index(config.data.train, need_masks=learns_masks(config))
    names = (
        str(image["file_name"])
        for image, record in zip(index.records.coco_images(), index.records, strict=True)
        if not record.is_crowd.all()
    )
    chosen = list(islice(names, number))
    if not chosen:
        raise ConfigError(f"data.train has no object to learn from: {index.summary()}")
    return chosen
