"""What learns in a training, built from its configuration: for the training, and to rehearse it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from instseg.config.build import (
    build_device,
    build_freeze,
    build_lr_scaling,
    build_model,
    build_optimizer,
    build_schedule,
)
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.trained import load_initial
from instseg.engine.distributed import broadcast_state, own_device, rank_and_size
from instseg.engine.freeze import FreezeSchedule
from instseg.engine.layers import backbone_blocks
from instseg.engine.optim import describe_groups
from instseg.engine.protocols import ScheduleFn
from instseg.engine.rng import seed_everything
from instseg.engine.sharding import Sharding


@dataclass(frozen=True)
class Learner:
    """A model and how its weights move.

    Args:
        model: on its device.
        optimizer: over all that trains in any epoch.
        schedule: factor on the learning rates as a function of the step.
        freeze: which parts are frozen in which epoch, None for those the model itself freezes.
        sharding: has sharded the model among the processes; None where each has all of it.
        device: of the model.
        description: learning rate, groups and freezing, a line each.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: ScheduleFn
    freeze: FreezeSchedule | None
    sharding: Sharding | None
    device: torch.device
    description: str


def build_learner(
    config: Config, class_names: Sequence[str], batches_per_epoch: int, *, replicas: int = 1
) -> Learner:
    """Build model, optimiser and schedule; equal arguments give equal weights.

    Raises:
        ConfigError: see its message.
    """
    # Seeded before the model is made, so that its random weights are a function of the seed too.
    seed_everything(config.train.seed)
    device = own_device(build_device(config))
    model = build_model(config.model, num_classes=len(class_names), class_names=class_names)
    model = model.to(device)
    if config.train.init_from is not None:
        load_initial(model, config.train.init_from, class_names)
    if config.train.sync_batch_norm:
        _synchronise_batch_norm(model, device)
    sharding = None
    if config.train.parallelism == "fsdp" and rank_and_size()[1] > 1:
        sharding = _shard(model)
    freeze = build_freeze(config, model)
    optimizer = build_optimizer(config, model, freeze, replicas)
    lines = [build_lr_scaling(config, replicas).describe(), describe_groups(optimizer)]
    if freeze is not None:
        lines.append(freeze.describe())
    if sharding is not None:
        lines.append(sharding.describe())
    return Learner(
        model,
        optimizer,
        build_schedule(config, batches_per_epoch, replicas),
        freeze,
        sharding,
        device,
        "\n".join(lines),
    )


def _shard(model: nn.Module) -> Sharding:
    """Shard a model over the processes, its backbone block by block."""
    broadcast_state(model)
    try:
        return Sharding(model, backbone_blocks(model))
    except (ValueError, NotImplementedError) as error:  # parameters of no dimension, for one
        raise ConfigError(f"train.parallelism: fsdp: {error}; use ddp") from None


def _synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Exchange the batch norms that learn for `torch.nn.SyncBatchNorm`; frozen ones stay."""
    if device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm works on GPUs alone, and this training is on {device.type}: "
            "leave it out, or use a model with group norm"
        )
    if rank_and_size()[1] == 1:
        return
    model.train()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and child.training:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
