"""What the detector in use makes of an image: objects found, false detections, objects missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from instseg.evaluation.reasons.matches import Flags, MatchTable
from instseg.evaluation.reasons.thresholds import Operation


@dataclass(frozen=True)
class Outcomes:
    """At IoU 0.5, by detections that reach their category's threshold.

    Args:
        true: ``bool [D]``, detections in use that found an object.
        false: ``bool [D]``, detections in use that found none.
        missed: ``bool [G]``, objects that no detection in use found.
    """

    true: Flags
    false: Flags
    missed: Flags


@dataclass(frozen=True)
class ImageOutcome:
    """One image's part. What COCO leaves out (crowds, and detections they excuse) is in no list.

    Args:
        found: (position in the results, id of the annotation) of each detection that found one.
        false: positions in the results.
        missed: ids of annotations.
    """

    found: list[tuple[int, int]]
    false: list[int]
    missed: list[int]


def judge(matches: MatchTable, operation: Operation) -> Outcomes:
    """Sort detections and objects by outcome."""
    found = matches.detections.found
    true = operation.kept & (found >= 0)
    missed = np.ones(len(matches.objects.category), dtype=np.bool_)
    missed[found[true]] = False
    return Outcomes(true, operation.kept & ~true, missed)


def outcomes_of_images(
    matches: MatchTable, outcomes: Outcomes, image_ids: Iterable[int]
) -> dict[int, ImageOutcome]:
    """The outcome of some images, by their id; records and annotations in ascending order."""
    detections, objects = matches.detections, matches.objects
    places = {image["id"]: place for place, image in enumerate(matches.images)}
    by_id = {}
    for image_id in image_ids:
        place = places[image_id]
        # Both tables are in order of image.
        rows = np.arange(*np.searchsorted(detections.image, [place, place + 1]))
        true, false = rows[outcomes.true[rows]], rows[outcomes.false[rows]]
        own = np.arange(*np.searchsorted(objects.image, [place, place + 1]))
        targets = objects.id[detections.found[true]].tolist()
        by_id[image_id] = ImageOutcome(
            found=list(zip(detections.record[true].tolist(), targets, strict=True)),
            false=detections.record[false].tolist(),
            missed=objects.id[own[outcomes.missed[own]]].tolist(),
        )
    return by_id
