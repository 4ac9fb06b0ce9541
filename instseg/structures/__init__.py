"""What flows between the parts: instances, masks, image batches. Data only, no models."""

from instseg.structures.geometry import AxisTransform
from instseg.structures.image_batch import ImageBatch
from instseg.structures.instances import Instances
from instseg.structures.masks import BitMasks, Masks, RoIMasks, Segmentation, SparseMasks
from instseg.structures.semantic_map import IGNORE, SemanticMap

__all__ = [
    "IGNORE",
    "AxisTransform",
    "BitMasks",
    "ImageBatch",
    "Instances",
    "Masks",
    "RoIMasks",
    "Segmentation",
    "SemanticMap",
    "SparseMasks",
]
