"""What flows between the parts: instances, masks, image batches. Data only, no models."""

from instseg.structures.geometry import AxisTransform
from instseg.structures.image_batch import ImageBatch
from instseg.structures.instances import Instances
from instseg.structures.masks import BitMasks, Masks, RoIMasks, Segmentation, SparseMasks

__all__ = [
    "AxisTransform",
    "BitMasks",
    "ImageBatch",
    "Instances",
    "Masks",
    "RoIMasks",
    "Segmentation",
    "SparseMasks",
]
