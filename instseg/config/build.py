"""From a configuration to the objects of a run: the only map from names to classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from instseg.config.build_data import (
    build_read_mixes,
    build_transformed_mixes,
    build_transforms,
    read_index,
)
from instseg.config.build_model import build_model
from instseg.config.loader import ConfigError
from instseg.config.schema import Config, CosineConfig, SgdConfig
from instseg.data.dataset import DetectionDataset
from instseg.data.index import CocoIndex
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import EvalSampler, TrainBatchSampler
from instseg.engine.distributed import rank_and_size
from instseg.engine.optim import build_optimizer as make_optimizer
from instseg.engine.options import TrainerOptions
from instseg.engine.protocols import ScheduleFn
from instseg.engine.schedule import Cosine, MultiStep
from instseg.evaluation.coco import METRIC_NAMES, CocoEvaluator, shapes_of
from instseg.evaluation.params import CocoParams
from instseg.evaluation.scores import BootstrapOptions

_logger = logging.getLogger(__name__)


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
    if not any((~record.is_crowd).any() for record in index.records):
        raise ConfigError(f"data.train has no object to learn from: {index.summary()}")
    data, seed = config.data, config.train.seed
    dataset = DetectionDataset(
        index.records,
        build_transforms(data.train_transforms),
        seed=seed,
        with_masks=has_masks(config),
        mix_read=build_read_mixes(data),
        mix_read_epochs=config.train.epochs - data.plain_epochs,
        mix_transformed=build_transformed_mixes(data),
        on_error=data.on_error,
    )
    sampler = TrainBatchSampler(
        [record.size for record in index.records],
        data.batch_size,
        seed=seed,
        aspect_grouping=data.aspect_grouping,
    )
    return _loader(config, dataset, sampler)


def build_val_loader(config: Config, index: CocoIndex) -> DetectionLoader:
    """Every image of the validation part once, in order; in a process group this one's share."""
    dataset = DetectionDataset(
        index.records,
        build_transforms(config.data.val_transforms),
        seed=config.train.seed,
        with_masks=False,
        on_error=config.data.on_error,
    )
    rank, world_size = rank_and_size()
    sampler = EvalSampler(
        len(index.records), config.data.val_batch_size, rank=rank, world_size=world_size
    )
    return _loader(config, dataset, sampler)


def _loader(
    config: Config, dataset: DetectionDataset, sampler: TrainBatchSampler | EvalSampler
) -> DetectionLoader:
    return DetectionLoader(
        dataset,
        sampler,
        num_workers=config.data.workers,
        pin_memory=build_device(config).type == "cuda",
    )


def build_evaluator(
    config: Config,
    index: CocoIndex,
    class_names: Sequence[str],
    *,
    params: CocoParams | None = None,
    intervals: BootstrapOptions | None = None,
    keep_results: bool = False,
) -> CocoEvaluator:
    """An evaluator of the model's classes on the ground truth of ``index``.

    Classes of the ground truth that the model does not know count as missed, with a warning. The
    other arguments are those of `CocoEvaluator`.

    Raises:
        ConfigError: the data set lacks one of the classes.
    """
    by_name = {c["name"]: c["id"] for c in index.categories}
    if missing := [name for name in class_names if name not in by_name]:
        raise ConfigError(
            f"the model's classes {', '.join(missing)} are not in the validation data, whose "
            f"classes are {', '.join(by_name)}"
        )
    if unknown := [name for name in by_name if name not in class_names]:
        _logger.warning("the model does not know the classes %s", ", ".join(unknown))
    return CocoEvaluator(
        index.coco,
        [by_name[name] for name in class_names],
        iou_types=iou_types(config),
        params=params,
        intervals=intervals,
        backend=config.evaluation.backend,
        keep_results=keep_results,
    )


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The optimiser over the model's trainable parameters."""
    section = config.train.optimizer
    if isinstance(section, SgdConfig):
        return make_optimizer(
            model,
            name="sgd",
            lr=section.lr,
            weight_decay=section.weight_decay,
            momentum=section.momentum,
        )
    return make_optimizer(
        model,
        name="adamw",
        lr=section.lr,
        weight_decay=section.weight_decay,
        betas=section.betas,
    )


def build_schedule(config: Config, batches_per_epoch: int) -> ScheduleFn:
    """The learning-rate factor of each update.

    Raises:
        ConfigError: the training is not longer than the warm-up, or too short to tell two
            milestones apart.
    """
    updates = -(-batches_per_epoch // config.train.accumulate) * config.train.epochs
    section = config.train.schedule
    if section.warmup_steps >= updates:
        raise ConfigError(
            f"train.schedule.warmup_steps is {section.warmup_steps}, but the whole training has "
            f"only {updates} updates: lower it, or train for more epochs"
        )
    if isinstance(section, CosineConfig):
        return Cosine(
            updates,
            final_factor=section.final_factor,
            warmup_steps=section.warmup_steps,
            warmup_factor=section.warmup_factor,
        )
    milestones = tuple(round(share * updates) for share in section.milestones)
    if len(set(milestones)) < len(milestones):
        raise ConfigError(
            f"train.schedule.milestones {section.milestones} of {updates} updates fall on updates "
            f"{milestones}: put them further apart, or train for more epochs"
        )
    return MultiStep(
        milestones,
        gamma=section.gamma,
        warmup_steps=section.warmup_steps,
        warmup_factor=section.warmup_factor,
    )


def build_options(config: Config) -> TrainerOptions:
    """The trainer's plain settings.

    Raises:
        ConfigError: ``train.best_metric`` is none of the scores.
    """
    train = config.train
    metrics = [f"{kind}/{name}" for kind in iou_types(config) for name in METRIC_NAMES]
    best_metric = train.best_metric or f"{iou_types(config)[-1]}/AP"
    if best_metric not in metrics:
        raise ConfigError(
            f"train.best_metric {best_metric!r} is none of the scores: {', '.join(metrics)}"
        )
    return TrainerOptions(
        epochs=train.epochs,
        seed=train.seed,
        accumulate=train.accumulate,
        amp=train.amp,
        clip_norm=train.clip_norm,
        ema_decay=train.ema_decay,
        eval_every=train.eval_every,
        best_metric=best_metric,
        checkpoint_every=train.save_every,
        log_every=train.log_every,
    )


def build_device(config: Config) -> torch.device:
    """``train.device``, or a GPU where there is one.

    Raises:
        ConfigError: see `find_device`.
    """
    return find_device(config.train.device, "train.device")


def find_device(name: str | None, source: str) -> torch.device:
    """The device of that name; None takes a GPU where there is one.

    Raises:
        ConfigError: the device is not known, or not there; the message begins with ``source``.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{source}: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{source} is {name!r}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def iou_types(config: Config) -> list[str]:
    """What is scored: the configuration's choice, or all that the model predicts.

    Raises:
        ConfigError: masks are asked for and the model has none.
    """
    chosen = config.evaluation.iou_types
    if chosen is None:
        return ["bbox", "segm"] if has_masks(config) else ["bbox"]
    if "segm" in shapes_of(chosen) and not has_masks(config):
        asked = ", ".join(chosen)
        raise ConfigError(f"evaluation.iou_types asks for {asked}, but the model predicts no masks")
    return list(chosen)


def read_val_index(config: Config) -> CocoIndex:
    """The validation data, with masks where they are scored."""
    return read_index(config.data.val, need_masks="segm" in shapes_of(iou_types(config)))


def has_masks(config: Config) -> bool:
    """Whether the model learns and predicts masks."""
    return config.model.predicts_masks


__all__ = [
    "build_device",
    "build_evaluator",
    "build_model",
    "build_optimizer",
    "build_options",
    "build_schedule",
    "build_train_loader",
    "build_transforms",
    "build_val_loader",
    "find_device",
    "has_masks",
    "iou_types",
    "read_index",
    "read_val_index",
]
