"""Readers of annotation formats, each to a COCO dictionary."""

from instseg.data.formats import instance_png, labelme, semantic_png, via, voc, yolo
from instseg.data.formats.common import FormatError, write_coco

__all__ = [
    "FormatError",
    "instance_png",
    "labelme",
    "semantic_png",
    "via",
    "voc",
    "write_coco",
    "yolo",
]
