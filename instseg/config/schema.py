"""Every key a configuration file may have, its type and its default.

The root is `Config`. Parts that can be exchanged (data formats, transforms, backbones, heads) are
chosen by ``format:`` or ``name:``; `instseg.config.build` is the one place that maps those names
to classes.
"""

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
from instseg.config.schema_data import DataConfig, ResizeTransformConfig, refuse_drawn_sizes
from instseg.config.schema_model import ModelConfig


class SgdConfig(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: PositiveFloat
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 1e-4


class AdamWConfig(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 1e-4
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


class TrainConfig(Section):
    """The course of the training."""

    epochs: PositiveInt
    init_from: InitConfig | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = CosineConfig(name="cosine")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    accumulate: PositiveInt = 1
    """Batches for each update."""
    clip_norm: PositiveFloat | None = None
    amp: Literal["bf16", "fp16"] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    eval_every: PositiveInt = 1
    """Epochs."""
    save_every: PositiveInt = 500
    """Steps between checkpoints, besides one at the end of each epoch."""
    log_every: PositiveInt = 20
    """Steps."""
    best_metric: str | None = None
    """Which score chooses `best.safetensors`, such as "segm/AP"; null for AP of the last of
    `evaluation.iou_types`."""
    device: str | None = None
    """Such as "cuda" or "cpu"; null takes a GPU where there is one."""


class EvaluationConfig(Section):
    """How predictions are scored."""

    iou_types: Annotated[list[Literal["bbox", "segm", "boundary"]], Field(min_length=1)] | None = (
        None
    )
    """null for boxes, and masks if the model predicts them."""
    backend: Literal["instseg", "hotcoco", "pycocotools"] = "instseg"
    """Who computes the figures; all agree. "instseg" keeps no masks in memory meanwhile."""
    maps: Annotated[list[Literal["semantic", "em", "threshold"]], Field(min_length=1)] = [
        "semantic"
    ]
    """What is measured of class maps: accuracy and overlap of the classes, the Rand and
    information scores of membranes, figures over the threshold."""


class InferenceConfig(Section):
    """What a weights file carries, so that nothing else is needed to use it."""

    model: ModelConfig
    transforms: list[ResizeTransformConfig] = []
    """What is done to an image before the model sees it."""

    @model_validator(mode="after")
    def _nothing_is_drawn(self) -> InferenceConfig:
        refuse_drawn_sizes("transforms", self.transforms)
        return self


class Config(Section):
    """A training and its evaluation."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    output: Path = Path("runs/default")
    """The folder of the run."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        colours, channels = (self.model.image_mean, self.model.image_std), self.model.image_channels
        if any(values is not None and len(values) != channels for values in colours):
            raise ValueError(
                "model.image_mean and model.image_std need a value for each of the images' "
                f"{channels} channels"
            )
        if self.data.copy_paste is not None and not self.model.predicts_masks:
            raise ValueError(
                "data.copy_paste pastes objects by their masks: it needs a model that has masks"
            )
        return self
