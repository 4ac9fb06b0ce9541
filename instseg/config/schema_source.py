"""The data sets of the ``data`` section: a format, and where its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from instseg.config.schema_base import NonNegativeInt, Section


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

    include: Annotated[list[str], Field(min_length=1)] | None = None
    """Take only images whose file name matches one of these patterns, such as "night/*.png"."""
    exclude: Annotated[list[str], Field(min_length=1)] | None = None
    """Leave out images whose file name matches one of these."""
    fold: FoldConfig | None = None
    """Take only a part of the images, of those that are left."""


class CocoSource(SourceConfig):
    """A COCO JSON file."""

    format: Literal["coco"]
    annotations: Path
    images: Path
    """Folder that the file names in ``annotations`` are relative to."""


class ShardsSource(SourceConfig):
    """Tar shards, as `instseg dataset shard` writes them, in a folder or an object store."""

    format: Literal["shards"]
    folder: str
    """The folder, or its address: https://..., s3://..., gs://..."""
    download: bool = False
    """Of an address: download whole shards to the cache, instead of reading byte ranges."""
    cache_gib: Annotated[float, Field(gt=0)] = 20.0
    """What its downloaded shards may take on the disk, in GiB."""


class InstancePngSource(SourceConfig):
    """A mask image for each image: pixel value = instance id, 0 = background."""

    format: Literal["instance_png"]
    images: Path
    masks: Path
    mask_suffix: str = ""
    """What a mask's file name has after that of its image, such as "_mask"."""
    category: str = "object"


Value = NonNegativeInt | tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class SemanticPngSource(SourceConfig):
    """A mask image for each image: pixel value, or colour, = class. Folders, or two stacks."""

    format: Literal["semantic_png"]
    images: Path
    masks: Path
    mask_suffix: str = ""
    classes: dict[str, Value] | None = None
    """Value or [r, g, b] of each class; null detects masks of 0 and 1, or 0 and 255."""
    background: Value | None = None
    """null for 0, where that is no class."""
    ignore: Value | None = None
    """null for 255, where that has no other meaning."""
    category: str = "foreground"
    """Name of the class of detected masks."""


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


class JitterConfig(Section):
    """pix2pix's augmentation: resize to a square, crop at random, mirror every second time."""

    resize: PositiveInt = 286
    crop: PositiveInt = 256
    mirror: bool = True

    @model_validator(mode="after")
    def _crop_fits(self) -> JitterConfig:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is over resize {self.resize}")
        return self


class ImagePairsSource(SourceConfig):
    """Pairs of pictures: folders ``inputs`` and ``targets``, or pictures side by side.

    Their names are those of the inputs' files.
    """

    format: Literal["image_pairs"]
    folder: Path
    swap: bool = False
    """Learn inputs from targets."""
    jitter: JitterConfig | None = None


Source = Annotated[
    CocoSource
    | ShardsSource
    | InstancePngSource
    | SemanticPngSource
    | VocSource
    | YoloSource
    | LabelmeSource
    | ViaSource
    | ImagePairsSource,
    Field(discriminator="format"),
]
