"""Semantic networks: compositions of parts, and their named builders."""

from instseg.models.semantic.network import EncoderDecoder, SegmentationNetwork
from instseg.models.semantic.segmenter import SemanticSegmenter

__all__ = ["EncoderDecoder", "SegmentationNetwork", "SemanticSegmenter"]
