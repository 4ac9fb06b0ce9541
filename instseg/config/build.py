"""From a configuration to the course of a training, and all that the commands build."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from instseg.config.build_data import build_transforms, read_index
from instseg.config.build_device import build_device, find_device
from instseg.config.build_evaluators import (
    build_coco_evaluator,
    build_evaluator,
    iou_types,
    predicts_maps,
    read_val_index,
    score_names,
)
from instseg.config.build_loaders import build_train_loader, build_val_loader, learns_masks
from instseg.config.build_model import build_model
from instseg.config.loader import ConfigError
from instseg.config.schema import Config, CosineConfig, SgdConfig
from instseg.engine.optim import build_optimizer as make_optimizer
from instseg.engine.options import TrainerOptions
from instseg.engine.protocols import ScheduleFn
from instseg.engine.schedule import Cosine, MultiStep


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
    names = score_names(config)
    best_metric = train.best_metric or names[0]
    if best_metric not in names:
        raise ConfigError(
            f"train.best_metric {best_metric!r} is none of the scores: {', '.join(names)}"
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


def has_masks(config: Config) -> bool:
    """Whether the model predicts objects with masks."""
    return config.model.predicts_masks


__all__ = [
    "build_coco_evaluator",
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
    "learns_masks",
    "predicts_maps",
    "read_index",
    "read_val_index",
]
