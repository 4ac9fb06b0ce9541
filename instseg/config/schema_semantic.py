"""Semantic networks of the ``model`` section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from instseg.config.schema_backbone import ResNetConfig, TimmConfig
from instseg.config.schema_base import Fraction, NonNegativeFloat, RgbModel, Section

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
NormName = Literal["batch", "group"]


class VggConfig(Section):
    """VGG of torchvision's make."""

    name: Literal["vgg"]
    depth: Literal[11, 13, 16, 19] = 16
    batch_norm: bool = False
    width: PositiveInt = 64
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    weights: Path | Literal["torchvision"] | None = None
    """A file, "torchvision" to download ImageNet weights, or null."""


EncoderConfig = Annotated[ResNetConfig | TimmConfig | VggConfig, Field(discriminator="name")]


class UNetConfig(Section):
    """U-Net as its paper has it, or padded."""

    name: Literal["unet"]
    width: PositiveInt = 64
    """Channels of the first level; each further level has twice as many."""
    depth: Annotated[int, Field(ge=1, le=7)] = 4
    """Poolings."""
    padding: Literal["valid", "same"] = "same"
    """valid is the paper's: no padded convolutions, the borders mirrored."""
    norm: NormName | None = None
    dropout: Fraction = 0.0
    """At the end of the contracting path."""
    up: Literal["transposed", "bilinear"] = "transposed"
    attention: bool = False
    """Attention gates on the skips."""


class EncoderUNetConfig(Section):
    """U-Net's decoder on any backbone."""

    name: Literal["encoder_unet"]
    backbone: EncoderConfig
    decoder_channels: Annotated[list[PositiveInt], Field(min_length=1)] = [256, 128, 64, 32, 16]
    """From the coarsest up, one for each halving of the resolution by the encoder."""
    norm: NormName | None = "batch"
    attention: bool = False


class TernausNetConfig(Section):
    """TernausNet: U-Net on VGG-11."""

    name: Literal["ternausnet"]
    width: PositiveInt = 64
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    weights: Path | Literal["torchvision"] | None = None
    """VGG-11 trained on ImageNet: a file, "torchvision" to download it, or null."""


class FcnConfig(Section):
    """FCN-32s, 16s or 8s on VGG-16."""

    name: Literal["fcn"]
    stride: Literal[32, 16, 8] = 8
    width: PositiveInt = 64
    hidden: PositiveInt = 4096
    """Channels of fc6 and fc7."""
    batch_norm: bool = False
    dropout: Fraction = 0.5
    learn_upsampling: bool = False
    """Train the last bilinear upsampling too."""
    weights: Path | Literal["torchvision"] | None = None
    """VGG-16 trained on ImageNet, with its classifier."""


class SegNetConfig(Section):
    """SegNet on VGG-16 with batch norm."""

    name: Literal["segnet"]
    width: PositiveInt = 64
    weights: Path | Literal["torchvision"] | None = None


class FpnSegmentationConfig(Section):
    """The semantic branch of Panoptic FPN."""

    name: Literal["fpn"]
    backbone: EncoderConfig
    pyramid_channels: PositiveInt = 256
    segmentation_channels: PositiveInt = 128
    norm: NormName | None = "group"


class UNetFpnConfig(Section):
    """U-Net's contracting path with the FPN decoder."""

    name: Literal["unet_fpn"]
    width: PositiveInt = 64
    depth: Annotated[int, Field(ge=1, le=7)] = 4
    norm: NormName | None = "batch"
    pyramid_channels: PositiveInt = 64
    segmentation_channels: PositiveInt = 64


class PatchClassifierConfig(Section):
    """The sliding-window classifier of pixels that these networks replaced, as an FCN."""

    name: Literal["patch_classifier"]
    window: PositiveInt = 95
    kernels: Annotated[list[PositiveInt], Field(min_length=1)] = [4, 5, 4, 4]
    """Side of each convolution's kernel; 2x2 max pooling follows each."""
    maps: PositiveInt = 48
    hidden: PositiveInt = 200
    activation: Literal["tanh", "relu"] = "tanh"


NetworkConfig = Annotated[
    UNetConfig
    | EncoderUNetConfig
    | TernausNetConfig
    | FcnConfig
    | SegNetConfig
    | FpnSegmentationConfig
    | UNetFpnConfig
    | PatchClassifierConfig,
    Field(discriminator="name"),
]


class _FinderConfig(Section):
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least probability of an object's pixels; null takes the map's own labels."""
    min_area: PositiveInt = 1
    """Objects of fewer pixels are left out."""
    connectivity: Literal[1, 2] = 1
    """1: pixels touch along an edge; 2: at a corner too."""
    fill_holes: bool = False
    max_detections: PositiveInt | None = None


class ComponentsConfig(_FinderConfig):
    """Connected components."""

    name: Literal["components"]


class DistanceWatershedConfig(_FinderConfig):
    """Components cut at their waists."""

    name: Literal["distance_watershed"]
    h: NonNegativeFloat = 1.0
    """Pixels by which the distance to the background falls between two objects."""
    smoothing: NonNegativeFloat = 1.0


class MarkerWatershedConfig(_FinderConfig):
    """Objects grown from the surest parts of their insides."""

    name: Literal["marker_watershed"]
    marker_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    min_marker_area: PositiveInt = 1
    smoothing: NonNegativeFloat = 0.0


InstancesConfig = Annotated[
    ComponentsConfig | DistanceWatershedConfig | MarkerWatershedConfig, Field(discriminator="name")
]


class SemanticConfig(Section):
    """A semantic network, alone or with objects made of its maps."""

    name: Literal["semantic"]
    network: NetworkConfig
    image_channels: PositiveInt = 3
    """3 is RGB, 1 gray, others what PNG and TIFF files hold."""
    image_bits: Literal[8, 16] = 8
    """16 keeps the values of 16-bit files; 8 takes their high byte."""
    image_mean: list[float] | None = None
    """On the 0..1 scale, one a channel; null is ImageNet's for RGB, otherwise 0.5."""
    image_std: list[PositiveFloat] | None = None
    """null is ImageNet's for RGB, otherwise 0.25."""
    classes: Literal["multiclass", "multilabel", "border"] = "multiclass"
    """Classes that exclude each other (softmax), or may overlap (sigmoid); "border" learns the
    inside and the border of the objects of one class."""
    background: bool = True
    """Of multiclass: pixels without object are a class of their own; false ignores them."""
    loss: dict[str, NonNegativeFloat] = {"cross_entropy": 1.0}
    """Losses by name, each with its weight: `instseg.losses.segmentation` has them. 0 leaves out
    one of the ``base``."""
    loss_options: dict[str, dict[str, JsonValue]] = {}
    """Arguments of a loss, such as ``{focal: {gamma: 2}}``."""
    class_weights: list[NonNegativeFloat] | None = None
    """One for each output, the background first where it is one."""
    threshold: OpenFraction | dict[str, OpenFraction] = 0.5
    """Of multilabel, and of two classes: the probability from which on a class is predicted;
    tools/eval_maps.py chooses one. Of multilabel also one for each class, by its name."""
    symmetries: Literal[1, 2, 4, 8] = 1
    """Predict the mean over so many turned and mirrored views of an image, at as many times the
    cost; the classes must not depend on how it is turned."""
    instances: InstancesConfig | None = None
    """How objects are made of the maps, to be scored as a detector's; null predicts maps."""

    @property
    def predicts_masks(self) -> bool:
        """Whether it predicts objects, which then have masks."""
        return self.instances is not None

    def outputs(self, num_classes: int) -> int:
        """Maps of logits for C classes of the data set."""
        if self.classes == "border":
            return 3
        return num_classes + (self.classes == "multiclass" and self.background)

    def map_names(self, class_names: Sequence[str]) -> list[str]:
        """What each class of the maps is, in order, for the classes of the data set."""
        if self.classes == "border":
            return ["background", "inside", "border"]
        has_background = self.classes == "multiclass" and self.background
        return ["background", *class_names] if has_background else list(class_names)

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> SemanticConfig:
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("give both image_mean and image_std, or neither")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.image_channels:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.image_channels} channels"
                )
        return self

    @model_validator(mode="after")
    def _thresholds_of_classes_that_overlap(self) -> SemanticConfig:
        if isinstance(self.threshold, dict) and self.classes != "multilabel":
            raise ValueError(
                f"threshold: one for each class is for classes: multilabel, not {self.classes}; "
                "give one number"
            )
        return self

    @model_validator(mode="after")
    def _some_loss(self) -> SemanticConfig:
        if not any(self.loss.values()):
            raise ValueError("loss names no loss with a weight over 0: nothing would be learned")
        return self

    @model_validator(mode="after")
    def _objects_have_a_background(self) -> SemanticConfig:
        if self.instances is not None and self.classes == "multiclass" and not self.background:
            raise ValueError("objects are made of what is not background: set background: true")
        return self


class Pix2PixConfig(RgbModel):
    """Image to image: a U-Net against a discriminator of patches."""

    name: Literal["pix2pix"]
    width: PositiveInt = 64
    """Channels of the first level of the generator and of the discriminator."""
    depth: Annotated[int, Field(ge=3, le=8)] = 8
    """Halvings of the generator."""
    l1_weight: NonNegativeFloat = 100.0
    image_mean: None = None
    image_std: None = None

    @property
    def predicts_masks(self) -> bool:
        """Whether it predicts objects."""
        return False
