"""Losses of semantic maps; `common` describes the arguments that all of them take."""

from instseg.losses.segmentation.common import Mode
from instseg.losses.segmentation.compound import LOSSES, SegmentationLoss, bce_log_dice, exp_log
from instseg.losses.segmentation.distance import (
    boundary,
    boundary_distance,
    hausdorff,
    signed_distance,
)
from instseg.losses.segmentation.lovasz import lovasz, lovasz_hinge, lovasz_softmax
from instseg.losses.segmentation.pixelwise import bce, cross_entropy, focal, top_k
from instseg.losses.segmentation.region import (
    dice,
    focal_tversky,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    sensitivity_specificity,
    squared_dice,
    tversky,
)

__all__ = [
    "LOSSES",
    "Mode",
    "SegmentationLoss",
    "bce",
    "bce_log_dice",
    "boundary",
    "boundary_distance",
    "cross_entropy",
    "dice",
    "exp_log",
    "focal",
    "focal_tversky",
    "generalized_dice",
    "hausdorff",
    "jaccard",
    "log_cosh_dice",
    "lovasz",
    "lovasz_hinge",
    "lovasz_softmax",
    "sensitivity_specificity",
    "signed_distance",
    "squared_dice",
    "top_k",
    "tversky",
]
