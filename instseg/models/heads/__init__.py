"""Heads: what is computed on feature maps or pooled regions."""

from instseg.models.heads.box import BoxPredictor, ConvFCBoxBody, FCBoxBody
from instseg.models.heads.mask import FCNMaskBody, MaskPredictor
from instseg.models.heads.rpn import RPNHead

__all__ = [
    "BoxPredictor",
    "ConvFCBoxBody",
    "FCBoxBody",
    "FCNMaskBody",
    "MaskPredictor",
    "RPNHead",
]
