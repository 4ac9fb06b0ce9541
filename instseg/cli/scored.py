"""What a scoring leaves for the tables, slices and reports made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instseg.evaluation.scores import CocoScores


@dataclass(frozen=True)
class Scored:
    """Scores, and what they were made of.

    Args:
        scores: by IoU type.
        ground_truth: a prepared COCO dictionary; empty where records were not kept.
        records: the detections as checked result records.
        images: the image files by id; None where they are not known.
        is_writer: whether this process prints and writes; under torchrun one of several does.
    """

    scores: dict[str, CocoScores]
    ground_truth: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    images: Mapping[int, Path] | None = None
    is_writer: bool = True
