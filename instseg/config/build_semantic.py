"""From the configuration's ``model`` section to a semantic network and what is around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from torch import nn

from instseg.config.build_backbone import build_backbone, load_classifier
from instseg.config.loader import ConfigError
from instseg.config.schema_backbone import TimmConfig
from instseg.config.schema_semantic import (
    ComponentsConfig,
    DistanceWatershedConfig,
    EncoderConfig,
    EncoderUNetConfig,
    FcnConfig,
    FpnSegmentationConfig,
    InstancesConfig,
    MarkerWatershedConfig,
    NetworkConfig,
    NormName,
    PatchClassifierConfig,
    SegNetConfig,
    SemanticConfig,
    TernausNetConfig,
    UNetConfig,
    UNetFpnConfig,
    VggConfig,
)
from instseg.losses.segmentation import SegmentationLoss
from instseg.models.backbones import Backbone
from instseg.models.backbones.vgg import VGG
from instseg.models.layers import Norm, group_norm
from instseg.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from instseg.models.semantic.fcn import FCN, fcn_vgg16
from instseg.models.semantic.fpn import fpn_segmentation, unet_fpn
from instseg.models.semantic.instances import (
    ConnectedComponents,
    DistanceWatershed,
    InstanceFinder,
    MarkerWatershed,
)
from instseg.models.semantic.network import EncoderDecoder, SegmentationNetwork
from instseg.models.semantic.patch_classifier import patch_fcn
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.models.semantic.segnet import SegNet, segnet_vgg16
from instseg.models.semantic.ternausnet import ternausnet
from instseg.models.semantic.unet import UNet, unet
from instseg.structures.semantic_map import Threshold

_FINE = (2, 4, 8, 16, 32)
"""Strides of the maps that U-Net's decoder joins."""
_TIMM_STRIDES = TimmConfig.model_fields["strides"].default
"""What a configuration says that leaves them out; all keys are in one that was saved."""


def build_semantic(
    config: SemanticConfig,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    load_backbone: bool = True,
) -> SemanticSegmenter:
    """See `instseg.config.build_model.build_model`."""
    if config.classes == "border" and num_classes != 1:
        raise ConfigError(
            f"model.classes: border parts the objects of one class, the data has {num_classes}: "
            "use multiclass or multilabel"
        )
    outputs = config.outputs(num_classes)
    if config.class_weights is not None and len(config.class_weights) != outputs:
        raise ConfigError(
            f"model.class_weights has {len(config.class_weights)} values for {outputs} outputs"
            + (" (the background first)" if config.classes == "multiclass" else "")
        )
    multi_label = config.classes == "multilabel"
    if outputs < 2 and not multi_label:
        raise ConfigError(
            "model.background: false leaves a single class, which excludes no other: set "
            "background: true, or classes: multilabel"
        )
    try:
        network = _network(config.network, outputs, config.image_channels, load_backbone)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.network: {error}") from None
    off = {name for name, weight in config.loss.items() if weight == 0}
    try:
        loss = SegmentationLoss(
            {name: weight for name, weight in config.loss.items() if name not in off},
            mode="multilabel" if multi_label else "multiclass",
            class_weights=config.class_weights,
            options={k: v for k, v in config.loss_options.items() if k not in off},
        )
    except ValueError as error:
        raise ConfigError(f"model.loss: {error}") from None
    return SemanticSegmenter(
        _preprocess(config),
        network,
        loss,
        multi_label=multi_label,
        threshold=_threshold(config, class_names),
        symmetries=config.symmetries,
        instances=None if config.instances is None else _finder(config.instances, config),
    )


def _threshold(config: SemanticConfig, class_names: Sequence[str] | None) -> Threshold:
    given = config.threshold
    if not isinstance(given, dict):
        return given
    if class_names is None:
        raise ValueError("model.threshold names classes: build_model needs class_names")
    known = f"the classes are {', '.join(class_names)}"
    if unknown := [name for name in given if name not in class_names]:
        raise ConfigError(f"model.threshold names {', '.join(unknown)}, but {known}")
    if missing := [name for name in class_names if name not in given]:
        raise ConfigError(f"model.threshold lacks {', '.join(missing)}: {known}")
    return tuple(given[name] for name in class_names)


def _preprocess(config: SemanticConfig) -> Preprocess:
    mean, std = config.image_mean, config.image_std
    if mean is None or std is None:
        rgb = config.image_channels == 3
        mean = list(IMAGENET_MEAN) if rgb else [0.5] * config.image_channels
        std = list(IMAGENET_STD) if rgb else [0.25] * config.image_channels
    return Preprocess(mean, std, size_divisor=1)


def _network(config: NetworkConfig, outputs: int, channels: int, load: bool) -> SegmentationNetwork:
    match config:
        case UNetConfig():
            return UNet(
                channels,
                outputs,
                width=config.width,
                depth=config.depth,
                padding=config.padding,
                norm=_norm(config.norm),
                dropout=config.dropout,
                up=config.up,
                attention=config.attention,
            )
        case EncoderUNetConfig():
            return _encoder_unet(config, outputs, channels, load)
        case TernausNetConfig():
            return _with_weights(
                ternausnet(outputs, channels, width=config.width, freeze_at=config.freeze_at),
                config.weights,
                "vgg11",
                load,
            )
        case FcnConfig():
            return _with_weights(_fcn(config, outputs, channels), config.weights, "vgg16", load)
        case SegNetConfig():
            segnet = segnet_vgg16(outputs, in_channels=channels, width=config.width)
            return _with_weights(segnet, config.weights, "vgg16_bn", load)
        case FpnSegmentationConfig():
            return fpn_segmentation(
                _encoder(config.backbone, load, channels, _FINE[1:]),
                outputs,
                in_channels=channels,
                pyramid_channels=config.pyramid_channels,
                segmentation_channels=config.segmentation_channels,
                norm=_norm(config.norm),
            )
        case UNetFpnConfig():
            return unet_fpn(
                channels,
                outputs,
                width=config.width,
                depth=config.depth,
                norm=_norm(config.norm),
                pyramid_channels=config.pyramid_channels,
                segmentation_channels=config.segmentation_channels,
            )
        case PatchClassifierConfig():
            options = config.model_dump(exclude={"name"})
            return patch_fcn(outputs, in_channels=channels, **options)
        case _:
            assert_never(config)


def _encoder_unet(
    config: EncoderUNetConfig, outputs: int, channels: int, load: bool
) -> EncoderDecoder:
    encoder = _encoder(config.backbone, load, channels, _FINE)
    halvings = max(encoder.strides).bit_length() - 1
    if len(config.decoder_channels) != halvings:
        raise ConfigError(
            f"model.network.decoder_channels has {len(config.decoder_channels)} values; this "
            f"backbone halves the resolution {halvings} times: give {halvings}"
        )
    return unet(
        encoder,
        outputs,
        in_channels=channels,
        decoder_channels=config.decoder_channels,
        norm=_norm(config.norm),
        attention=config.attention,
    )


def _fcn(config: FcnConfig, outputs: int, channels: int) -> FCN:
    return fcn_vgg16(
        outputs,
        stride=config.stride,
        in_channels=channels,
        width=config.width,
        hidden=config.hidden,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        learn_upsampling=config.learn_upsampling,
    )


def _encoder(
    config: EncoderConfig, load: bool, channels: int, strides: tuple[int, ...]
) -> Backbone:
    section = "model.network.backbone"
    if isinstance(config, TimmConfig) and config.strides not in (_TIMM_STRIDES, list(strides)):
        raise ConfigError(
            f"{section}.strides: this network joins the maps of strides "
            f"{', '.join(map(str, strides))}: leave the key out"
        )
    if not isinstance(config, VggConfig):
        return build_backbone(config, load, channels, strides=strides, section=section)
    vgg = VGG(
        config.depth,
        batch_norm=config.batch_norm,
        width=config.width,
        freeze_at=config.freeze_at,
        in_channels=channels,
    )
    if load and config.weights is not None:
        name = f"vgg{config.depth}" + ("_bn" if config.batch_norm else "")
        load_classifier(vgg, config.weights, name, section)
    return vgg


def _with_weights(
    network: EncoderDecoder | FCN | SegNet, weights: Path | str | None, name: str, load: bool
) -> SegmentationNetwork:
    if load and weights is not None:
        loads = network.encoder if isinstance(network, EncoderDecoder) else network
        load_classifier(loads, weights, name, "model.network")
    return network


def _finder(config: InstancesConfig, model: SemanticConfig) -> InstanceFinder:
    options = config.model_dump(exclude={"name"})
    match config:
        case ComponentsConfig():
            return ConnectedComponents(layout=model.classes, **options)
        case DistanceWatershedConfig():
            return DistanceWatershed(layout=model.classes, **options)
        case MarkerWatershedConfig():
            return MarkerWatershed(layout=model.classes, **options)
        case _:
            assert_never(config)


def _norm(name: NormName | None) -> Norm | None:
    return {"batch": nn.BatchNorm2d, "group": group_norm, None: None}[name]
