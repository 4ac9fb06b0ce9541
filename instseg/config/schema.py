"""Every key a configuration file may have, its type and its default.

The root is `Config`. Parts that can be exchanged (data formats, transforms, backbones, heads) are
chosen by ``format:`` or ``name:``; `instseg.config.build` is the one place that maps those names
to classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- data -----------------------------------------------------------------------------------------


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


# --- model ----------------------------------------------------------------------------------------


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


class FpnConfig(Section):
    """Feature pyramid network."""

    name: Literal["fpn"] = "fpn"
    channels: PositiveInt = 256
    norm: Literal["batch"] | None = None


class AnchorsConfig(Section):
    """Anchor sizes in pixels for each level (the pooled level last), height / width ratios."""

    sizes: list[Annotated[list[PositiveFloat], Field(min_length=1)]] = [
        [32.0],
        [64.0],
        [128.0],
        [256.0],
        [512.0],
    ]
    aspect_ratios: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 1.0, 2.0]

    @model_validator(mode="after")
    def _levels_alike(self) -> AnchorsConfig:
        if len({len(level) for level in self.sizes}) > 1:
            raise ValueError("every level of sizes needs the same number of sizes")
        return self


class RpnConfig(Section):
    """Region proposal network."""

    depth: PositiveInt = 1
    positive_iou: Probability = 0.7
    negative_iou: Probability = 0.3
    samples: PositiveInt = 256
    positive_fraction: Probability = 0.5
    train_before_nms: PositiveInt = 2000
    train_after_nms: PositiveInt = 2000
    test_before_nms: PositiveInt = 1000
    test_after_nms: PositiveInt = 1000
    nms_threshold: Probability = 0.7

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RpnConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou} is over positive_iou {self.positive_iou}"
            )
        return self


class FcBodyConfig(Section):
    """Two fully connected layers."""

    name: Literal["fc"]
    channels: PositiveInt = 1024


class ConvFcBodyConfig(Section):
    """Convolutions, then one fully connected layer."""

    name: Literal["conv_fc"]
    conv_channels: list[PositiveInt] = [256, 256, 256, 256]
    channels: PositiveInt = 1024
    norm: Literal["batch"] | None = "batch"


BoxBodyConfig = Annotated[FcBodyConfig | ConvFcBodyConfig, Field(discriminator="name")]


class BoxHeadConfig(Section):
    """Classes and boxes of the proposals."""

    body: BoxBodyConfig = FcBodyConfig(name="fc")
    pooled_size: PositiveInt = 7
    samples: PositiveInt = 512
    positive_fraction: Probability = 0.25
    positive_iou: Probability = 0.5
    score_threshold: Probability = 0.05
    nms_threshold: Probability = 0.5
    max_detections: PositiveInt = 100


class FcnMaskHeadConfig(Section):
    """Convolutions and one transposed convolution."""

    name: Literal["fcn"]
    channels: list[PositiveInt] = [256, 256, 256, 256]
    pooled_size: PositiveInt = 14
    norm: Literal["batch"] | None = None


class RcnnConfig(Section):
    """What Faster and Mask R-CNN share."""

    backbone: BackboneConfig
    image_mean: list[float] = [0.485, 0.456, 0.406]
    """On the 0..1 scale, as the backbone's weights were trained."""
    image_std: list[PositiveFloat] = [0.229, 0.224, 0.225]
    neck: FpnConfig = FpnConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RpnConfig = RpnConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    torchvision_compatible: bool = False
    """Follow torchvision's pixel conventions, for weights converted from its checkpoints."""


class FasterRcnnConfig(RcnnConfig):
    """Boxes."""

    name: Literal["faster_rcnn"]


class MaskRcnnConfig(RcnnConfig):
    """Boxes and masks."""

    name: Literal["mask_rcnn"]
    mask_head: FcnMaskHeadConfig = FcnMaskHeadConfig(name="fcn")


ModelConfig = Annotated[FasterRcnnConfig | MaskRcnnConfig, Field(discriminator="name")]


# --- training -------------------------------------------------------------------------------------


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

    iou_types: Annotated[list[Literal["bbox", "segm"]], Field(min_length=1)] | None = None
    """null for all that the model predicts."""
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"


class InferenceConfig(Section):
    """What a weights file carries, so that nothing else is needed to use it."""

    model: ModelConfig
    transforms: list[ResizeTransformConfig] = []
    """What is done to an image before the model sees it."""


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
        if len(self.model.image_mean) != 3 or len(self.model.image_std) != 3:
            raise ValueError(
                "model.image_mean and model.image_std need three values each: images are RGB"
            )
        if self.data.copy_paste is not None and not isinstance(self.model, MaskRcnnConfig):
            raise ValueError("data.copy_paste pastes objects by their masks: it needs a mask_rcnn")
        return self
