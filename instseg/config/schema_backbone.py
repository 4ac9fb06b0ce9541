"""Backbones of the ``model`` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from instseg.config.schema_base import Section


class ResNetConfig(Section):
    """ResNet of torchvision's make."""

    name: Literal["resnet"]
    depth: Literal[18, 34, 50, 101] = 50
    norm: Literal["frozen", "live"] = "frozen"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 2
    weights: Path | Literal["torchvision"] | None = None
    """A file (safetensors or torch), "torchvision" to download ImageNet weights, or null."""

    @model_validator(mode="after")
    def _frozen_needs_weights(self) -> ResNetConfig:
        if self.weights is None and (self.norm == "frozen" or self.freeze_at > 0):
            raise ValueError(
                "without weights a frozen backbone stays random: set weights, or norm: live and "
                "freeze_at: 0 to train it from scratch"
            )
        return self


class TimmConfig(Section):
    """Any backbone of timm by name."""

    name: Literal["timm"]
    model: str
    norm: Literal["frozen", "live"] = "frozen"
    strides: Annotated[list[PositiveInt], Field(min_length=1)] = [4, 8, 16, 32]
    weights: Path | Literal["timm"] | None = None
    """A file in timm's names, "timm" to download timm's own, or null."""

    @model_validator(mode="after")
    def _strides_double(self) -> TimmConfig:
        first = self.strides[0]
        if first & (first - 1) or any(s != first << i for i, s in enumerate(self.strides)):
            raise ValueError(
                f"strides must be powers of two, each twice the one before, got {self.strides}"
            )
        return self


BackboneConfig = Annotated[ResNetConfig | TimmConfig, Field(discriminator="name")]
