"""Decoders: an encoder's maps to one map."""

from instseg.models.semantic.decoders.attention import AttentionGate
from instseg.models.semantic.decoders.fpn import FPNDecoder
from instseg.models.semantic.decoders.unet import ExpandingPath, UNetDecoder

__all__ = ["AttentionGate", "ExpandingPath", "FPNDecoder", "UNetDecoder"]
