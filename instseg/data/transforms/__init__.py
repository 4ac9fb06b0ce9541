"""Augmentations on torchvision's ``transforms.v2``: each takes and gives (image, instances).

Torchvision's own colour transforms work here as they are; `PhotometricDistort` is made of one
(SSD's brightness, contrast, saturation, hue and channel order). What moves pixels has to be one of
the transforms of this package, which move boxes and masks with the image. A `MixTransform` takes
further images of the data set besides.
"""

from instseg.data.transforms.color import HsvJitter, PhotometricDistort
from instseg.data.transforms.compose import Compose, drop_degenerate
from instseg.data.transforms.copy_paste import SimpleCopyPaste
from instseg.data.transforms.elastic import ElasticDeformation
from instseg.data.transforms.geometric import LargeScaleJitter, RandomCrop, RandomHorizontalFlip
from instseg.data.transforms.intensity import IntensityJitter
from instseg.data.transforms.mix import MixTransform
from instseg.data.transforms.mixup import MixUp
from instseg.data.transforms.mosaic import Mosaic
from instseg.data.transforms.moves import Pair, PairTransform
from instseg.data.transforms.random_window import RandomWindow
from instseg.data.transforms.resize import Letterbox, Resize, ResizeShortestEdge, letterbox_size
from instseg.data.transforms.ssd import Expand, IoUCrop
from instseg.data.transforms.symmetry import RandomRotation90, RandomVerticalFlip

__all__ = [
    "Compose",
    "ElasticDeformation",
    "Expand",
    "HsvJitter",
    "IntensityJitter",
    "IoUCrop",
    "LargeScaleJitter",
    "Letterbox",
    "MixTransform",
    "MixUp",
    "Mosaic",
    "Pair",
    "PairTransform",
    "PhotometricDistort",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation90",
    "RandomVerticalFlip",
    "RandomWindow",
    "Resize",
    "ResizeShortestEdge",
    "SimpleCopyPaste",
    "drop_degenerate",
    "letterbox_size",
]
