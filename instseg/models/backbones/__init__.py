"""Backbones: images to feature maps of falling resolution."""

from instseg.models.backbones.base import Backbone
from instseg.models.backbones.resnet import ResNet
from instseg.models.backbones.timm import TimmBackbone

__all__ = ["Backbone", "ResNet", "TimmBackbone"]
