"""A small schema with every construct that the loader's tests need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FCNHead(Strict):
    name: Literal["fcn"] = "fcn"
    convs: int = 4
    channels: int = 256


class UNetHead(Strict):
    name: Literal["unet"]
    depth: int
    channels: int = 64
    dropout: float = 0.0


Head = Annotated[FCNHead | UNetHead, Field(discriminator="name")]


class CocoData(Strict):
    format: Literal["coco"]
    images: Path
    coco: int = 0
    """A key that is spelt like the union's tag."""


class VocData(Strict):
    format: Literal["voc", "voc2007"]
    root: Path
    size: tuple[int, int] = (480, 640)


Data = Annotated[CocoData | VocData, Field(discriminator="format")]


class Optimizer(Strict):
    learning_rate: float = 0.01
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("a multistep schedule needs milestones")
        return self


class Train(Strict):
    optimizer: Optimizer = Optimizer()
    batch_size: int = 2
    amp: bool = False
    clip: float | None = None
    workers: int | Literal["auto"] | list[int] = "auto"


class Run(Strict):
    name: str = "run"
    notes: str = ""


class Tree(Strict):
    children: list[Tree] = []
    label: str = ""


class Config(Strict):
    head: Head | None = None
    heads: list[Head] = []
    named_heads: dict[str, Head] = {}
    data: list[Data] = []
    train: Train = Train()
    run: Run = Run()
    tree: Tree = Tree()
    counts: dict[int, float] = {}
    ema: bool | Optimizer = False
    extra: Any = None
    hook: Callable[[], int] | None = None
    """JSON schema cannot express this type."""


class Needy(Strict):
    images: Path
    head: Head
