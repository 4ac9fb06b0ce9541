"""The ``model`` section of one-stage detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_backbone import BackboneConfig, TimmConfig
from instseg.config.schema_base import Probability, RgbModel, Section

Shape = tuple[PositiveFloat, PositiveFloat]
"""Width and height in pixels."""


class OneStageConfig(RgbModel):
    """What all of them have; null stands for the family's own value."""

    image_mean: list[float] | None = None
    """On the 0..1 scale, as the backbone's weights were trained; given with image_std or not."""
    image_std: list[PositiveFloat] | None = None
    score_threshold: Probability | None = None
    nms_threshold: Probability | None = None
    max_detections: PositiveInt | None = None

    @property
    def predicts_masks(self) -> bool:
        """Whether detections have masks."""
        return False

    @model_validator(mode="after")
    def _mean_and_deviation(self) -> OneStageConfig:
        if (self.image_mean is None) != (self.image_std is None):
            given, other = ("mean", "std") if self.image_std is None else ("std", "mean")
            raise ValueError(
                f"image_{given} is set without image_{other}: give both, or neither for the "
                f"model's own"
            )
        return self


class PrototypesConfig(Section):
    """Masks as combinations of prototypes (YOLACT)."""

    number: PositiveInt = 32
    channels: PositiveInt | None = None
    """Width of the layers that make them; null for that of the head."""
    mask_size: PositiveInt = 56
    """Side of the mask of a detection, spread over its box."""


class SsdConfig(OneStageConfig):
    """SSD300, SSD512 and SSDlite."""

    name: Literal["ssd"]
    variant: Literal["ssd300_vgg16", "ssd512_vgg16", "ssdlite320_mobilenet_v3_large"]
    freeze_at: Annotated[int, Field(ge=0)] = 0
    weights: Path | Literal["torchvision"] | None = None
    """Of the backbone: a classifier's file, "torchvision" to download ImageNet's, or null."""
    backbone: TimmConfig | None = None
    """In the place of SSDlite's MobileNetV3: maps of strides 16 and 32."""

    @model_validator(mode="after")
    def _backbone_fits(self) -> SsdConfig:
        if self.backbone is None:
            return self
        if self.variant != "ssdlite320_mobilenet_v3_large":
            raise ValueError("backbone takes the place of SSDlite's alone: VGG's shape is SSD's")
        if self.backbone.strides != [16, 32]:
            raise ValueError(
                f"SSDlite reads maps of strides [16, 32]: set backbone.strides to these, "
                f"not {self.backbone.strides}"
            )
        if self.weights is not None or self.freeze_at:
            raise ValueError("weights and freeze_at are of MobileNetV3: set backbone.weights")
        return self


class RetinaNetConfig(OneStageConfig):
    """RetinaNet; the defaults are the paper's, version 2 of torchvision's has group and giou."""

    name: Literal["retinanet"]
    backbone: BackboneConfig
    channels: PositiveInt = 256
    """Of the pyramid and the head."""
    depth: PositiveInt = 4
    """Convolutions before each output."""
    norm: Literal["group"] | None = None
    """Of these convolutions: groups of 8 channels, 32 of the usual 256."""
    box_loss: Literal["l1", "giou"] = "l1"
    extra_from: Literal["c5", "p5"] = "c5"
    """Which map P6 is made from."""
    min_stride: PositiveInt = 8
    """Of the pyramid's finest map."""
    masks: PrototypesConfig | None = None
    torchvision_compatible: bool = False
    """Torchvision's anchors, for weights converted from its checkpoints."""

    @property
    def predicts_masks(self) -> bool:
        """Whether detections have masks."""
        return self.masks is not None

    @model_validator(mode="after")
    def _groups_divide(self) -> RetinaNetConfig:
        if self.norm == "group" and self.channels % 8:
            raise ValueError(f"norm: group needs channels in eights, got {self.channels}")
        return self


class YoloxConfig(OneStageConfig):
    """YOLOX; with masks it is yolox_nano_seg and so on."""

    name: Literal["yolox"]
    variant: Literal["yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x"] = (
        "yolox_nano"
    )
    input_size: PositiveInt | None = None
    """Batches are padded to this side at least; null for the variant's, 416 or 640."""
    masks: PrototypesConfig | None = None
    multi_label: bool = False
    """Detections of every class that passes the threshold, not of a cell's best class alone."""
    use_l1: bool = False
    """The L1 loss that YOLOX adds in its last epochs."""

    @property
    def predicts_masks(self) -> bool:
        """Whether detections have masks."""
        return self.masks is not None

    @model_validator(mode="after")
    def _whole_strides(self) -> YoloxConfig:
        if self.input_size is not None and self.input_size % 32:
            raise ValueError(
                f"input_size must be a multiple of the largest stride, 32, got {self.input_size}"
            )
        return self


class YoloV1Config(OneStageConfig):
    """YOLOv1."""

    name: Literal["yolov1"]
    width: PositiveFloat = 1.0
    """Factor of every number of channels."""
    hidden: PositiveInt = 4096
    """Of the fully connected layer."""


class YoloV2Config(OneStageConfig):
    """YOLOv2 with Darknet-19."""

    name: Literal["yolov2"]
    width: PositiveFloat = 1.0
    """Factor of every number of channels."""
    anchors: Annotated[list[Shape], Field(min_length=1)] | None = None
    """As `tools/dataset.py anchors` prints them; null for the paper's five of COCO."""


class SqueezeDetConfig(OneStageConfig):
    """SqueezeDet."""

    name: Literal["squeezedet"]
    version: Literal["1_0", "1_1"] = "1_1"
    """Of SqueezeNet."""
    anchors: Annotated[list[Shape], Field(min_length=1)] | None = None
    """As `tools/dataset.py anchors` prints them; null for the paper's nine of KITTI."""
    weights: Path | Literal["torchvision"] | None = None
    """Of the backbone: a classifier's file, "torchvision" to download ImageNet's, or null."""


class DetectNetConfig(OneStageConfig):
    """DetectNet."""

    name: Literal["detectnet"]
    weights: Path | Literal["torchvision"] | None = None
    """Of the backbone: a classifier's file, "torchvision" to download ImageNet's, or null."""


OneStageModels = (
    SsdConfig
    | RetinaNetConfig
    | YoloxConfig
    | YoloV1Config
    | YoloV2Config
    | SqueezeDetConfig
    | DetectNetConfig
)
