"""What is found of small and large objects, and of few and many."""

from __future__ import annotations

from dataclasses import dataclass

import hotcoco
import numpy as np

from instseg.evaluation.reasons.curves import mean_precision
from instseg.evaluation.reasons.matches import Flags, MatchTable

CROWDING = (
    ("1 object in the image", 1, 1),
    ("2-4", 2, 4),
    ("5-9", 5, 9),
    ("10+", 10, None),
)
"""(name, fewest, most) objects in an image."""


@dataclass(frozen=True)
class CrowdingRecall:
    """Objects in images with so many objects, and those found at IoU 0.5.

    Args:
        name: the number of objects in the image.
        objects: how many such objects there are.
        found: how many were found by any detection, whatever its score.
        recall: found / objects; -1 where there are none.
    """

    name: str
    objects: int
    found: int
    recall: float


@dataclass(frozen=True)
class SizeRecall:
    """Objects of one size, and those found at IoU 0.5.

    Args:
        name: "small", "medium" or "large", as COCO has it: up to 32^2 pixels, up to 96^2, above.
            As in COCO, an object just on an edge counts on both sides.
        objects: how many such objects there are.
        found: how many were found by any detection, whatever its score.
        recall: found / objects; -1 where there are none.
        AP: COCO's AP at IoU 0.5 of this size; -1 where there are none.
    """

    name: str
    objects: int
    found: int
    recall: float
    AP: float


def by_size(matches: MatchTable, evaluation: hotcoco.COCOeval) -> list[SizeRecall]:
    """Recall and AP of COCO's three sizes, from an accumulated evaluation."""
    area, parameters = matches.objects.area, evaluation.params
    sizes = []
    for index, name in enumerate(parameters.area_rng_lbl):
        if name != "all":
            low, high = parameters.area_rng[index]
            counts = _recall(matches, (area >= low) & (area <= high))
            ap = float(np.mean(mean_precision(evaluation, thresholds=[0], area=index)))
            sizes.append(SizeRecall(name, *counts, ap))
    return sizes


def by_crowding(matches: MatchTable) -> list[CrowdingRecall]:
    """Recall by the number of objects in an object's image."""
    image = matches.objects.image
    number = np.bincount(image, minlength=len(matches.images))[image]
    return [
        CrowdingRecall(
            name, *_recall(matches, (number >= fewest) & (most is None or number <= most))
        )
        for name, fewest, most in CROWDING
    ]


def _recall(matches: MatchTable, chosen: Flags) -> tuple[int, int, float]:
    objects = int(np.count_nonzero(chosen))
    found = int(np.count_nonzero(chosen & (matches.objects.finder >= 0)))
    return objects, found, found / objects if objects else -1.0
