"""From the configuration to backbones with their weights."""

from __future__ import annotations

import logging
from pathlib import Path

from torchvision.models import get_model_weights

from instseg.config.loader import ConfigError
from instseg.config.schema_backbone import BackboneConfig, ResNetConfig
from instseg.engine.weights import load_weights
from instseg.models.backbones import Backbone, ResNet, TimmBackbone

_logger = logging.getLogger(__name__)


def build_backbone(config: BackboneConfig, load: bool, in_channels: int) -> Backbone:
    """The backbone of a section.

    Args:
        config: which, and where its weights are.
        load: give it these weights.
        in_channels: channels of the images.

    Raises:
        ConfigError: timm is missing or does not know the model, or weights do not fit.
    """
    if isinstance(config, ResNetConfig):
        resnet = ResNet(config.depth, norm=config.norm, freeze_at=config.freeze_at)
        if load and config.weights is not None:
            load_classifier(resnet, config.weights, f"resnet{config.depth}", "model.backbone")
        return resnet
    try:
        timm = TimmBackbone(
            config.model,
            norm=config.norm,
            strides=config.strides,
            in_channels=in_channels,
            pretrained=load and config.weights == "timm",
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"model.backbone: {error}") from None
    if load and isinstance(config.weights, Path):
        load_classifier(timm, config.weights, config.model, "model.backbone")
    return timm


def load_classifier(backbone: Backbone, weights: Path | str, name: str, section: str) -> None:
    """Give a backbone the weights of a classifier.

    Args:
        backbone: of the same architecture.
        weights: a file, or "torchvision" to download those of its model ``name``.
        name: torchvision's name of the classifier.
        section: of the configuration, for messages.

    Raises:
        ConfigError: the weights do not fit; the message names the file.
    """
    if isinstance(weights, Path):
        tensors, _ = load_weights(weights)
    else:
        published = get_model_weights(name).DEFAULT
        _logger.info("downloading %s, if it is not in torch's cache", published)
        tensors = dict(published.get_state_dict(progress=True, check_hash=True))
    try:
        backbone.load_classifier(tensors)
    except ValueError as error:
        raise ConfigError(f"{section}.weights: {weights}: {error}") from None
