"""The ``data`` section: data sets, transforms, batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_base import NonNegativeFloat, NonNegativeInt, Probability, Section
from instseg.config.schema_source import Source


class ResizeShortestEdgeConfig(Section):
    """Short edge to one of ``sizes`` (drawn for each image: multi-scale), long edge capped."""

    name: Literal["resize_shortest_edge"]
    sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    max_size: PositiveInt


class _SizedConfig(Section):
    height: PositiveInt | None = None
    width: PositiveInt | None = None
    sizes: Annotated[list[tuple[PositiveInt, PositiveInt]], Field(min_length=1)] | None = None
    """In place of height and width: several [height, width], one drawn for each image
    (multi-scale, for training)."""

    @model_validator(mode="after")
    def _one_way_to_the_size(self) -> _SizedConfig:
        given = (self.height is not None, self.width is not None, self.sizes is not None)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError("give either height and width, or sizes")
        return self

    def all_sizes(self) -> list[tuple[int, int]]:
        """Every (height, width) that may be drawn."""
        if self.height is not None and self.width is not None:
            return [(self.height, self.width)]
        return list(self.sizes or [])


class ResizeConfig(_SizedConfig):
    """To exactly ``height`` x ``width``."""

    name: Literal["resize"]
    antialias: bool = True
    """false for weights that were trained with plain bilinear resizing."""


class LetterboxConfig(_SizedConfig):
    """To the largest size that fits in ``height`` x ``width`` and keeps the aspect ratio."""

    name: Literal["letterbox"]
    antialias: bool = False
    """false is YOLOX's resizing, plain bilinear."""


class HorizontalFlipConfig(Section):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    p: Probability = 0.5


class _ScaledConfig(Section):
    min_scale: PositiveFloat = 0.1
    max_scale: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _scales_in_order(self) -> _ScaledConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is over max_scale {self.max_scale}")
        return self


class LargeScaleJitterConfig(_ScaledConfig):
    """Random scale, then crop or pad to ``height`` x ``width``."""

    name: Literal["large_scale_jitter"]
    height: PositiveInt
    width: PositiveInt


class RandomCropConfig(Section):
    """A window that keeps at least one box."""

    name: Literal["random_crop"]
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    min_visibility: Probability = 0.25


class ExpandConfig(Section):
    """SSD's zooming out: the image somewhere on a larger canvas of the mean colour."""

    name: Literal["expand"]
    p: Probability = 0.5
    max_scale: Annotated[float, Field(ge=1)] = 4.0
    """Greatest side of the canvas, in sides of the image."""


class IoUCropConfig(Section):
    """SSD's random patch that overlaps an object by at least one of ``min_ious``."""

    name: Literal["iou_crop"]
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Least part of the image's height and width."""
    min_ious: list[Probability] = [0.1, 0.3, 0.5, 0.7, 0.9]
    """Any patch and the whole image are chosen from besides."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] = 2.0


class PhotometricDistortConfig(Section):
    """Random brightness, contrast, saturation, hue and channel order (SSD)."""

    name: Literal["photometric_distort"]
    p: Probability = 0.5
    """Of each."""


class HsvJitterConfig(Section):
    """YOLOX's shifts of hue, saturation and value, in OpenCV's units; each in half of the images.

    180 is the whole circle of hues, 255 full saturation and value.
    """

    name: Literal["hsv_jitter"]
    hue: Annotated[int, Field(ge=0, le=90)] = 5
    saturation: Annotated[int, Field(ge=0, le=255)] = 30
    value: Annotated[int, Field(ge=0, le=255)] = 30


class VerticalFlipConfig(Section):
    """Mirror top and bottom."""

    name: Literal["vertical_flip"]
    p: Probability = 0.5


class Rotation90Config(Section):
    """Turn by a quarter, a half or three quarters."""

    name: Literal["rotation90"]
    p: Probability = 0.75


class RandomWindowConfig(Section):
    """A window of ``height`` x ``width`` anywhere; a smaller image is mirrored at its borders."""

    name: Literal["random_window"]
    height: PositiveInt
    width: PositiveInt


class ElasticConfig(Section):
    """U-Net's smooth deformation, with rotation and scaling in the same resampling."""

    name: Literal["elastic"]
    p: Probability = 1.0
    sigma: NonNegativeFloat = 10.0
    """Standard deviation of the grid's displacements, in pixels."""
    grid: Annotated[int, Field(ge=2)] = 3
    """Nodes along each side."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Greatest angle in degrees."""
    min_scale: PositiveFloat = 1.0
    max_scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _scales_in_order(self) -> ElasticConfig:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is over max_scale {self.max_scale}")
        return self


class IntensityJitterConfig(Section):
    """Brightness, contrast and gamma of images of any channels and depth."""

    name: Literal["intensity_jitter"]
    p: Probability = 1.0
    brightness: Probability = 0.1
    contrast: Probability = 0.2
    gamma: NonNegativeFloat = 0.2


TransformConfig = Annotated[
    ResizeShortestEdgeConfig
    | ResizeConfig
    | LetterboxConfig
    | HorizontalFlipConfig
    | LargeScaleJitterConfig
    | RandomCropConfig
    | ExpandConfig
    | IoUCropConfig
    | PhotometricDistortConfig
    | HsvJitterConfig
    | VerticalFlipConfig
    | Rotation90Config
    | RandomWindowConfig
    | ElasticConfig
    | IntensityJitterConfig,
    Field(discriminator="name"),
]


# What can be undone on predictions: resizing alone.
ResizeTransformConfig = Annotated[
    ResizeShortestEdgeConfig | ResizeConfig | LetterboxConfig, Field(discriminator="name")
]


def refuse_drawn_sizes(key: str, transforms: Sequence[ResizeTransformConfig]) -> None:
    """Raise ValueError where one would draw a size for each image: predictions must repeat."""
    for transform in transforms:
        if transform.sizes is not None and len(transform.sizes) > 1:
            raise ValueError(
                f"{key}: {transform.name} would draw one of its sizes for each image; give one "
                f"size, not {transform.sizes}"
            )


class CopyPasteConfig(Section):
    """Simple Copy-Paste: objects of a second image pasted over the first."""

    p: Probability = 0.5


class MosaicConfig(_ScaledConfig):
    """Four images around a point, shown at random scale, before ``train_transforms``."""

    p: Probability = 1.0
    height: PositiveInt
    width: PositiveInt
    """Of the mosaic; scale 1 is images that fit in it."""
    max_shift: Probability = 0.1
    """Of the mosaic, as a share of its sides."""
    min_visibility: Probability = 0.2
    """Objects of which less of the box is left are removed."""


class MixUpConfig(_ScaledConfig):
    """A second image half transparent over the first, before ``train_transforms``."""

    p: Probability = 1.0
    min_scale: PositiveFloat = 0.5
    max_scale: PositiveFloat = 1.5
    """Of the second image; 1 is an image that fits in the first."""
    min_visibility: Probability = 0.2
    """Objects of the second image of which less of the box is left are removed."""


class WeightMapConfig(Section):
    """U-Net's weights of the pixels (equation 2): class balance, and gaps between cells."""

    w0: NonNegativeFloat = 10.0
    sigma: PositiveFloat = 5.0
    """Pixels."""
    class_weights: list[PositiveFloat] | None = None
    """One a class; null balances the classes of each image."""
    max_class_weight: Annotated[float, Field(ge=1)] = 10.0


class TargetsConfig(Section):
    """How objects become the maps that a semantic network learns."""

    border_width: PositiveInt = 2
    """Pixels; of ``classes: border``."""
    separate_touching: bool = False
    """Keep a line of background between objects that touch, as U-Net does."""
    cells: Literal["instances", "components"] = "instances"
    """What the weight map keeps apart: the objects, or the connected parts of their class."""
    cell_labels: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Labels whose objects the weight map keeps apart, from 0 in the order of the category ids;
    null for all. A membrane's is not one."""
    weight_map: WeightMapConfig | None = None

    @model_validator(mode="after")
    def _cells_are_of_the_weight_map(self) -> TargetsConfig:
        if self.cell_labels is not None and self.weight_map is None:
            raise ValueError(
                "cell_labels says what the weight map keeps apart, and there is none: set "
                "weight_map, or leave it out"
            )
        return self


class ShuffleSamplingConfig(Section):
    """Every image once an epoch."""

    name: Literal["shuffle"]
    keep_empty: bool = True
    """Take in images without objects."""


class RepeatFactorSamplingConfig(Section):
    """LVIS's repeat factor sampling: images of rare classes several times an epoch."""

    name: Literal["repeat_factor"]
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Classes in a smaller share of the images are repeated, by the square root of what they
    lack."""
    keep_empty: bool = True
    """Take in images without objects."""


class ClassAwareSamplingConfig(Section):
    """Every class equally often, then one of its images."""

    name: Literal["class_aware"]
    keep_empty: bool = False
    """Draw images without objects too, as if these were one more class."""


SamplingConfig = Annotated[
    ShuffleSamplingConfig | RepeatFactorSamplingConfig | ClassAwareSamplingConfig,
    Field(discriminator="name"),
]


class DataConfig(Section):
    """Where samples come from and how they are prepared."""

    train: Source
    val: Source
    train_transforms: list[TransformConfig] = []
    val_transforms: list[ResizeTransformConfig] = []
    """Also what `tools/predict.py` does to images before the model sees them."""
    copy_paste: CopyPasteConfig | None = None
    mosaic: MosaicConfig | None = None
    mixup: MixUpConfig | None = None
    plain_epochs: NonNegativeInt = 0
    """Epochs at the end of the training without mosaic and mixup."""
    targets: TargetsConfig = TargetsConfig()
    batch_size: PositiveInt = 4
    val_batch_size: PositiveInt = 4
    workers: NonNegativeInt = 2
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    """How worker processes are made; null for Python's default."""
    on_worker_fault: Literal["stop", "restart"] = "restart"
    """What is done when a worker process dies or hangs; the batches stay the same."""
    worker_timeout: PositiveFloat | None = 600
    """Seconds without progress of any worker, while a batch is waited for, after which they count
    as hung; more than a worker's start and its longest sample take. null waits for ever."""
    sampling: SamplingConfig = ShuffleSamplingConfig(name="shuffle")
    aspect_grouping: bool = True
    decode: Literal["full", "reduced"] = "full"
    """"reduced" decodes JPEGs for `train_transforms` at 1/2, 1/4 or 1/8 of their size where the
    first transform, a resize, needs no more: faster, and a little other pixels."""
    shard_window: PositiveInt | None = None
    """Of a data set in shards: shuffle the shards, and the images within every so many; null
    shuffles all images."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does to an epoch; the file is named either way."""
    on_defect: Literal["skip", "raise"] = "skip"
    """What a record of the annotations that cannot be used does to a training: it is left out, with
    one warning that counts the reasons, or the training does not begin."""

    @model_validator(mode="after")
    def _validation_draws_nothing(self) -> DataConfig:
        refuse_drawn_sizes("val_transforms", self.val_transforms)
        return self

    @model_validator(mode="after")
    def _plain_epochs_follow_others(self) -> DataConfig:
        if self.plain_epochs and self.mosaic is None and self.mixup is None:
            raise ValueError(
                "plain_epochs are without mosaic and mixup, and there is neither: leave it out"
            )
        return self
