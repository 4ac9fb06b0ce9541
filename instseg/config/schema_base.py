"""What the sections of the schema share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RgbModel(Section):
    """A model of RGB images with 8 bits a channel."""

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return 3

    @property
    def image_bits(self) -> int:
        """Of each channel."""
        return 8
