"""The ``train`` section: optimiser, schedule, the course of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Probability,
    Section,
)


class _OptimizerConfig(Section):
    lr: PositiveFloat
    """For one replica; see `train.lr_scaling`."""
    weight_decay: NonNegativeFloat = 1e-4
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer l of the backbone's L layers learns at the rate times layer_decay^(L - l), l from 0;
    the heads learn at the rate. null for one rate."""
    lr_factors: dict[str, PositiveFloat] = {}
    """Factors on the rate by patterns on the names of parameters or modules, such as
    {"backbone.*": 0.1}; of several that match the last one counts."""


class SgdConfig(_OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: NonNegativeFloat = 0.9


class AdamWConfig(_OptimizerConfig):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


OptimizerConfig = Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")]


class MultiStepConfig(Section):
    """Multiply the rate by ``gamma`` after each of the ``milestones``."""

    name: Literal["multi_step"]
    warmup_steps: NonNegativeInt = 500
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 1e-3
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = [0.75, 0.92]
    """As shares of the whole training."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self) -> MultiStepConfig:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {self.milestones}")
        return self


class CosineConfig(Section):
    """Half a cosine down to ``final_factor`` of the rate."""

    name: Literal["cosine"]
    warmup_steps: NonNegativeInt = 500
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 1e-3
    final_factor: Probability = 0.0


ScheduleConfig = Annotated[MultiStepConfig | CosineConfig, Field(discriminator="name")]


class InitConfig(Section):
    """Weights of a whole model to start from, as `tools/train_net.py` writes them."""

    weights: Path
    heads: bool = True
    """Take the class-specific layers too; false where the classes are others."""


class FreezeConfig(Section):
    """Modules that do not train at first, or never."""

    modules: Annotated[list[str], Field(min_length=1)]
    """Patterns on the names of modules, such as "backbone.*"."""
    until_epoch: PositiveInt | None = None
    """They are frozen in this many epochs from the first on; null for all."""


class EarlyStoppingConfig(Section):
    """End the training when `train.best_metric` no longer rises."""

    patience: PositiveInt
    """Evaluations in a row without improvement."""
    min_delta: NonNegativeFloat = 0.0
    """An improvement is more than this."""


class TrainConfig(Section):
    """The course of the training."""

    epochs: PositiveInt
    init_from: InitConfig | None = None
    strategy: Literal["full", "feature_extraction", "fine_tuning"] = "full"
    """All parts from the start; all but the backbone; or the heads first and then the backbone's
    layers one by one, the last one first, over the first half of the epochs."""
    freeze: list[FreezeConfig] = []
    """What is frozen how long, in place of a strategy's own plan."""
    optimizer: OptimizerConfig
    lr_scaling: Literal["auto", "linear", "sqrt", "none"] = "auto"
    """How the rate follows the number of replicas: in proportion, by its square root, or not at
    all; "auto" is linear for sgd and sqrt for adamw."""
    schedule: ScheduleConfig = CosineConfig(name="cosine")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    accumulate: PositiveInt = 1
    """Batches for each update, times `replicas`."""
    replicas: PositiveInt | None = None
    """Batches of `data.batch_size` that one step takes for each of `accumulate`; null for as many
    as processes begin the run. A run goes on with the same number, whatever the number of
    processes."""
    clip_norm: PositiveFloat | None = None
    amp: Literal["bf16", "fp16"] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    eval_every: PositiveInt = 1
    """Epochs."""
    save_every: PositiveInt = 500
    """Steps between checkpoints, besides one at the end of each epoch."""
    log_every: PositiveInt = 20
    """Steps."""
    on_nonfinite: Literal["stop", "skip", "lower_scale"] = "stop"
    """What is done about a loss or a gradient that is not finite: stop, leave the step out, or
    (fp16 alone) leave it out and lower the loss scale. A black box is written each time."""
    nonfinite_patience: PositiveInt = 10
    """Steps in a row that "skip" leaves out before it stops."""
    on_out_of_memory: Literal["stop", "split"] = "stop"
    """What is done when a batch does not fit into the GPU's memory: stop with a report, or repeat
    it in halves."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole model, or (for large backbones) its part of
    weights, gradients, optimiser state and average."""
    sync_batch_norm: bool = False
    """Take batch norm's figures over the batches of all processes (GPUs)."""
    best_metric: str | None = None
    """Which score chooses `best.safetensors`, such as "segm/AP"; null for AP of the last of
    `evaluation.iou_types`."""
    early_stopping: EarlyStoppingConfig | None = None
    device: str | None = None
    """Such as "cuda" or "cpu"; null takes a GPU where there is one."""

    @model_validator(mode="after")
    def _scale_is_there(self) -> TrainConfig:
        if self.on_nonfinite == "lower_scale" and self.amp != "fp16":
            raise ValueError(
                "on_nonfinite: lower_scale needs amp: fp16, which alone has a loss scale; use "
                "stop or skip"
            )
        waits = {"sync_batch_norm": self.sync_batch_norm, "fsdp": self.parallelism == "fsdp"}
        if self.on_out_of_memory == "split" and any(waits.values()):
            raise ValueError(
                "on_out_of_memory: split repeats passes in one process alone, and "
                f"{' and '.join(name for name in waits if waits[name])} waits for all of them: "
                "leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _one_plan_of_freezing(self) -> TrainConfig:
        if self.freeze and self.strategy != "full":
            raise ValueError(
                f"strategy: {self.strategy} freezes parts by a plan of its own: leave out either "
                "strategy or freeze"
            )
        if self.strategy == "fine_tuning" and self.epochs < 2:
            raise ValueError("strategy: fine_tuning needs 2 epochs: heads first, then the backbone")
        return self
