"""Readers of annotation formats, each to a COCO dictionary."""
