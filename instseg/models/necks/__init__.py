"""Necks: feature maps of a backbone to feature maps of one width."""

from instseg.models.necks.fpn import FPN

__all__ = ["FPN"]
