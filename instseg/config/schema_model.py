"""The ``model`` section: all models, and the parts of Faster and Mask R-CNN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_backbone import BackboneConfig
from instseg.config.schema_base import NonNegativeFloat, Probability, RgbModel, Section
from instseg.config.schema_one_stage import OneStageModels
from instseg.config.schema_semantic import Pix2PixConfig, SemanticConfig


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


class MaskLossesConfig(Section):
    """Weights of the losses of masks."""

    bce: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _one_at_least(self) -> MaskLossesConfig:
        if self.bce == self.dice == 0:
            raise ValueError("bce and dice are both 0: masks would learn nothing")
        return self


class FcnMaskHeadConfig(Section):
    """Convolutions and one transposed convolution."""

    name: Literal["fcn"]
    channels: list[PositiveInt] = [256, 256, 256, 256]
    pooled_size: PositiveInt = 14
    norm: Literal["batch"] | None = None
    losses: MaskLossesConfig = MaskLossesConfig()


class UNetMaskHeadConfig(Section):
    """A U-Net on the features of each box, with a skip from finer ones."""

    name: Literal["unet"]
    depth: Literal[2, 3] = 2
    """Poolings; the features are cut out at a side of 7 * 2 ** depth."""
    resolution: Literal[56, 112] = 56
    """Side of the masks."""
    channels: PositiveInt = 256
    """At the coarsest level; half as many at each finer one."""
    class_agnostic: bool = False
    """One mask for a box in place of one for each class."""
    norm: Literal["batch", "group"] | None = None
    losses: MaskLossesConfig = MaskLossesConfig(bce=1.0, dice=1.0)

    @model_validator(mode="after")
    def _channels_halve(self) -> UNetMaskHeadConfig:
        if self.channels % (self.resolution // 7):
            raise ValueError(
                f"channels must be a multiple of resolution / 7 = {self.resolution // 7}, "
                f"got {self.channels}"
            )
        return self


MaskHeadConfig = Annotated[FcnMaskHeadConfig | UNetMaskHeadConfig, Field(discriminator="name")]


class RcnnConfig(RgbModel):
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

    @property
    def predicts_masks(self) -> bool:
        """Whether detections have masks."""
        return False


class FasterRcnnConfig(RcnnConfig):
    """Boxes."""

    name: Literal["faster_rcnn"]


class MaskRcnnConfig(RcnnConfig):
    """Boxes and masks."""

    name: Literal["mask_rcnn"]
    mask_head: MaskHeadConfig = FcnMaskHeadConfig(name="fcn")

    @property
    def predicts_masks(self) -> bool:
        """Whether detections have masks."""
        return True


ModelConfig = Annotated[
    FasterRcnnConfig | MaskRcnnConfig | OneStageModels | SemanticConfig | Pix2PixConfig,
    Field(discriminator="name"),
]
