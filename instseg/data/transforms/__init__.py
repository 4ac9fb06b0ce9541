"""Augmentations on torchvision's ``transforms.v2``: each takes and gives (image, instances).

Torchvision's own colour transforms work here as they are; `PhotometricDistort` is one of them
(SSD's brightness, contrast, saturation, hue and channel order). What moves pixels has to be one of
the transforms of this package, which move boxes and masks with the image.
"""

from torchvision.transforms.v2 import RandomPhotometricDistort as PhotometricDistort

from instseg.data.transforms.compose import Compose, drop_degenerate
from instseg.data.transforms.copy_paste import SimpleCopyPaste
from instseg.data.transforms.geometric import (
    LargeScaleJitter,
    Pair,
    PairTransform,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ResizeShortestEdge,
)

__all__ = [
    "Compose",
    "LargeScaleJitter",
    "Pair",
    "PairTransform",
    "PhotometricDistort",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Resize",
    "ResizeShortestEdge",
    "SimpleCopyPaste",
    "drop_degenerate",
]
