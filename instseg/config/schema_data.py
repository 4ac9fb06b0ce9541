"""The ``data`` section: formats, transforms, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_base import NonNegativeInt, Probability, Section


class FoldConfig(Section):
    """A part of the images sorted by file name: position % ``folds`` == ``index`` is "val"."""

    folds: Annotated[int, Field(ge=2)]
    index: NonNegativeInt = 0
    part: Literal["train", "val"]

    @model_validator(mode="after")
    def _index_in_range(self) -> FoldConfig:
        if self.index >= self.folds:
            raise ValueError(f"index must be in 0..{self.folds - 1}, got {self.index}")
        return self


class SourceConfig(Section):
    """What every data set has."""

    fold: FoldConfig | None = None
    """Take only a part of the images."""


class CocoSource(SourceConfig):
    """A COCO JSON file."""

    format: Literal["coco"]
    annotations: Path
    images: Path
    """Folder that the file names in ``annotations`` are relative to."""


class InstancePngSource(SourceConfig):
    """A mask image for each image: pixel value = instance id, 0 = background."""

    format: Literal["instance_png"]
    images: Path
    masks: Path
    mask_suffix: str = ""
    """What a mask's file name has after that of its image, such as "_mask"."""
    category: str = "object"


class VocSource(SourceConfig):
    """Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt."""

    format: Literal["voc"]
    root: Path
    split: str | None = None
    categories: list[str] | None = None


class YoloSource(SourceConfig):
    """YOLO text files: normalised boxes or polygons."""

    format: Literal["yolo"]
    images: Path
    labels: Path
    names: Path | list[str]
    """The class names, or a data.yaml that has them."""


class LabelmeSource(SourceConfig):
    """LabelMe JSON files beside their images."""

    format: Literal["labelme"]
    folder: Path
    categories: list[str] | None = None


class ViaSource(SourceConfig):
    """A VGG Image Annotator project or its exported regions."""

    format: Literal["via"]
    file: Path
    images: Path
    attribute: str | None = None
    """The region attribute that holds the class."""
    category: str | None = None
    """Or one class for all regions."""
    categories: list[str] | None = None

    @model_validator(mode="after")
    def _one_way_to_the_class(self) -> ViaSource:
        if (self.attribute is None) == (self.category is None):
            raise ValueError("give either attribute or category")
        return self


Source = Annotated[
    CocoSource | InstancePngSource | VocSource | YoloSource | LabelmeSource | ViaSource,
    Field(discriminator="format"),
]


class ResizeShortestEdgeConfig(Section):
    """Short edge to one of ``sizes`` (drawn for each image: multi-scale), long edge capped."""

    name: Literal["resize_shortest_edge"]
    sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    max_size: PositiveInt


class ResizeConfig(Section):
    """To exactly ``height`` x ``width``."""

    name: Literal["resize"]
    height: PositiveInt
    width: PositiveInt


class HorizontalFlipConfig(Section):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    p: Probability = 0.5


class LargeScaleJitterConfig(Section):
    """Random scale, then crop or pad to ``height`` x ``width``."""

    name: Literal["large_scale_jitter"]
    height: PositiveInt
    width: PositiveInt
    min_scale: PositiveFloat = 0.1
    max_scale: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _scales_in_order(self) -> LargeScaleJitterConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is over max_scale {self.max_scale}")
        return self


class RandomCropConfig(Section):
    """A window that keeps at least one box."""

    name: Literal["random_crop"]
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    min_visibility: Probability = 0.25


class PhotometricDistortConfig(Section):
    """Random brightness, contrast, saturation, hue."""

    name: Literal["photometric_distort"]
    p: Probability = 0.5


TransformConfig = Annotated[
    ResizeShortestEdgeConfig
    | ResizeConfig
    | HorizontalFlipConfig
    | LargeScaleJitterConfig
    | RandomCropConfig
    | PhotometricDistortConfig,
    Field(discriminator="name"),
]


# What can be undone on predictions: resizing alone.
ResizeTransformConfig = Annotated[
    ResizeShortestEdgeConfig | ResizeConfig, Field(discriminator="name")
]


class CopyPasteConfig(Section):
    """Simple Copy-Paste: objects of a second image pasted over the first."""

    p: Probability = 0.5


class DataConfig(Section):
    """Where samples come from and how they are prepared."""

    train: Source
    val: Source
    train_transforms: list[TransformConfig] = []
    val_transforms: list[ResizeTransformConfig] = []
    """Also what `tools/predict.py` does to images before the model sees them."""
    copy_paste: CopyPasteConfig | None = None
    batch_size: PositiveInt = 4
    val_batch_size: PositiveInt = 4
    workers: NonNegativeInt = 2
    aspect_grouping: bool = True
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does to an epoch; the file is named either way."""

    @model_validator(mode="after")
    def _validation_draws_nothing(self) -> DataConfig:
        for transform in self.val_transforms:
            if isinstance(transform, ResizeShortestEdgeConfig) and len(transform.sizes) > 1:
                raise ValueError(
                    "val_transforms: resize_shortest_edge would draw one of its sizes for each "
                    f"image; give one size, not {transform.sizes}"
                )
        return self
