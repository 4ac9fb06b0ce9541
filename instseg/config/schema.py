"""Every key a configuration file may have, its type and its default.

The root is `Config`. Parts that can be exchanged (data formats, transforms, backbones, heads) are
chosen by ``format:`` or ``name:``; `instseg.config.build` is the one place that maps those names
to classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from instseg.config.schema_base import Section
from instseg.config.schema_data import (
    DataConfig,
    ResizeTransformConfig,
    TargetsConfig,
    refuse_drawn_sizes,
)
from instseg.config.schema_model import ModelConfig
from instseg.config.schema_semantic import SemanticConfig
from instseg.config.schema_train import InitConfig as InitConfig
from instseg.config.schema_train import TrainConfig


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
        learns_maps = isinstance(self.model, SemanticConfig)
        if self.data.copy_paste is not None and not (self.model.predicts_masks or learns_maps):
            raise ValueError(
                "data.copy_paste pastes objects by their masks: it needs a model that has masks"
            )
        if self.data.targets != TargetsConfig() and not learns_maps:
            raise ValueError(
                "data.targets says how objects become class maps, which the model semantic alone "
                f"learns, not {self.model.name}: leave it out"
            )
        return self
