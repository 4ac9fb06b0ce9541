"""From a configuration to the course of a training, and all that the commands build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
from instseg.config.schema import Config
from instseg.config.schema_train import CosineConfig, SgdConfig
from instseg.engine.early_stopping import EarlyStopping
from instseg.engine.freeze import FreezeRule, FreezeSchedule, feature_extraction, fine_tuning
from instseg.engine.lr_scaling import LrScaling
from instseg.engine.optim import LrFactors
from instseg.engine.optim import build_optimizer as make_optimizer
from instseg.engine.options import TrainerOptions
from instseg.engine.protocols import ScheduleFn
from instseg.engine.schedule import Cosine, MultiStep


def build_freeze(config: Config, model: nn.Module) -> FreezeSchedule | None:
    """Which parts of the model are frozen in which epoch; None if none ever is.

    Raises:
        ConfigError: a pattern matches nothing, no part is left to train, or the strategy needs a
            backbone and the model has none.
    """
    train = config.train
    if train.strategy == "full" and not train.freeze:
        return None
    key = "freeze" if train.freeze else "strategy"
    with _config_errors(f"train.{key}"):
        if train.strategy == "feature_extraction":
            rules = feature_extraction(model)
        elif train.strategy == "fine_tuning":
            rules = fine_tuning(model, train.epochs)
        else:
            rules = [FreezeRule(tuple(rule.modules), rule.until_epoch) for rule in train.freeze]
        return FreezeSchedule(model, rules)


def build_early_stopping(config: Config) -> EarlyStopping | None:
    """When a training that no longer improves ends; None for never."""
    section = config.train.early_stopping
    return None if section is None else EarlyStopping(section.patience, section.min_delta)


def build_lr_scaling(config: Config, replicas: int) -> LrScaling:
    """The learning rate of a step that takes the batches of ``replicas``."""
    return LrScaling(
        lr=config.train.optimizer.lr,
        optimizer=config.train.optimizer.name,
        rule=config.train.lr_scaling,
        replicas=replicas,
        images_per_step=config.data.batch_size * config.train.accumulate * replicas,
    )


def build_optimizer(
    config: Config, model: nn.Module, freeze: FreezeSchedule | None = None, replicas: int = 1
) -> Optimizer:
    """The optimiser over what the model trains in any epoch.

    Args:
        config: of the training.
        model: after this it is as ``freeze`` has it in the last epoch.
        freeze: what is frozen when.
        replicas: for `build_lr_scaling`.

    Raises:
        ConfigError: the learning rates' settings do not fit the model.
    """
    if freeze is not None:  # nothing is frozen again: the last epoch trains all that any does
        freeze.apply(model, config.train.epochs - 1)
    section = config.train.optimizer
    settings: dict[str, Any] = {"name": section.name, "weight_decay": section.weight_decay}
    if isinstance(section, SgdConfig):
        settings["momentum"] = section.momentum
    else:
        settings["betas"] = section.betas
    with _config_errors("train.optimizer"):
        return make_optimizer(
            model,
            lr=build_lr_scaling(config, replicas).scaled_lr,
            lr_factors=LrFactors(section.layer_decay, section.lr_factors),
            **settings,
        )


def build_schedule(config: Config, batches_per_epoch: int, replicas: int = 1) -> ScheduleFn:
    """The learning-rate factor of each update.

    Raises:
        ConfigError: the training is not longer than the warm-up, or too short to tell two
            milestones apart.
    """
    batches_per_step = config.train.accumulate * replicas
    updates = -(-batches_per_epoch // batches_per_step) * config.train.epochs
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


def build_options(config: Config, replicas: int = 1) -> TrainerOptions:
    """The trainer's plain settings.

    Args:
        config: of the training.
        replicas: how many times ``train.accumulate`` batches a step takes.

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
        accumulate=train.accumulate * replicas,
        amp=train.amp,
        clip_norm=train.clip_norm,
        ema_decay=train.ema_decay,
        eval_every=train.eval_every,
        best_metric=best_metric,
        checkpoint_every=train.save_every,
        log_every=train.log_every,
        on_nonfinite=train.on_nonfinite,
        nonfinite_patience=train.nonfinite_patience,
        on_out_of_memory=train.on_out_of_memory,
    )


def has_masks(config: Config) -> bool:
    """Whether the model predicts objects with masks."""
    return config.model.predicts_masks


@contextmanager
def _config_errors(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


__all__ = [
    "build_coco_evaluator",
    "build_device",
    "build_early_stopping",
    "build_evaluator",
    "build_freeze",
    "build_lr_scaling",
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
