"""From the configuration to backbones with their weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torchvision.models import get_model_weights

from instseg.config.loader import ConfigError
from instseg.config.schema_backbone import BackboneConfig, ResNetConfig
from instseg.engine.weights import load_weights
from instseg.models.backbones import Backbone, ResNet, TimmBackbone

_logger = logging.getLogger(__name__)


class Classifier(Protocol):
    """What can take over the weights of a classification network."""

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `Backbone.load_classifier`."""


def build_backbone(
    config: BackboneConfig,
    load: bool,
    in_channels: int,
    *,
    strides: Sequence[int] | None = None,
    section: str = "model.backbone",
) -> Backbone:
    """The backbone of a section.

    Args:
        config: which, and where its weights are.
        load: give it these weights.
        in_channels: channels of the images.
        strides: of the maps that are wanted; None for those of the section, or 4 to 32.
        section: where in the configuration it is, for messages.

    Raises:
        ConfigError: timm is missing or does not know the model, or weights do not fit.
    """
    if isinstance(config, ResNetConfig):
        resnet = ResNet(
            config.depth,
            norm=config.norm,
            freeze_at=config.freeze_at,
            strides=strides or (4, 8, 16, 32),
            in_channels=in_channels,
        )
        if load and config.weights is not None:
            load_classifier(resnet, config.weights, f"resnet{config.depth}", section)
        return resnet
    try:
        timm = TimmBackbone(
            config.model,
            norm=config.norm,
            strides=strides or config.strides,
            in_channels=in_channels,
            pretrained=load and config.weights == "timm",
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{section}: {error}") from None
    if load and isinstance(config.weights, Path):
        load_classifier(timm, config.weights, config.model, section)
    return timm


def load_classifier(network: Classifier, weights: Path | str, name: str, section: str) -> None:
    """Give a network the weights of a classifier.

    Args:
        network: with a part of the same architecture.
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
        network.load_classifier(tensors)
    except ValueError as error:
        raise ConfigError(f"{section}.weights: {weights}: {error}") from None
