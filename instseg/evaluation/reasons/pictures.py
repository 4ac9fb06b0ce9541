"""Which images are worth looking at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from instseg.evaluation.reasons.errors import Errors, ErrorType
from instseg.evaluation.reasons.matches import Indices, MatchTable
from instseg.evaluation.reasons.outcomes import Outcomes

WORST = 12
INSTRUCTIVE_OF_EACH_TYPE = 2


@dataclass(frozen=True)
class Picture:
    """An image and why it was chosen.

    Args:
        image_id: the image's id.
        file_name: its file, "" where the ground truth does not say.
        group: "worst" or "instructive".
        why: in a few words.
        tp: objects found at IoU 0.5, by detections that reach their category's threshold.
        fp: such detections that found nothing.
        fn: objects not found.
        f1: 2 tp / (2 tp + fp + fn); 1 where there is nothing to find and nothing was.
        error: the type of error it shows; None in the group "worst".
        categories: those of its false detections and of the objects missed, most errors first.
    """

    image_id: int
    file_name: str
    group: str
    why: str
    tp: int
    fp: int
    fn: int
    f1: float
    error: str | None
    categories: list[str]


@dataclass(frozen=True)
class _Counts:
    """``int64 [I]`` each, and F1 ``float64 [I]``."""

    tp: Indices
    fp: Indices
    fn: Indices

    @property
    def errors(self) -> Indices:
        return self.fp + self.fn

    def f1(self, image: int) -> float:
        all_counts = int(2 * self.tp[image] + self.errors[image])
        return float(2 * self.tp[image] / all_counts) if all_counts else 1.0


def choose_pictures(matches: MatchTable, outcomes: Outcomes, errors: Errors) -> list[Picture]:
    """At most 24 images, each once: those of lowest F1, and clear examples of each type of error.

    The worst are at most half of the images with an error, to leave examples over. Of equal F1 the
    image with more errors is worse. Examples are the detections of highest score that reach their
    category's threshold, and the largest of the missed objects, each in an image of its own.
    """
    counts = _count(matches, outcomes)
    faulty = np.flatnonzero(counts.errors)
    f1 = np.array([counts.f1(i) for i in faulty.tolist()])
    worst = faulty[np.lexsort((-counts.errors[faulty], f1))]
    worst = worst[: min(WORST, -(-len(faulty) // 2))]
    chosen: list[tuple[int, str, ErrorType | None]] = [
        (i, f"{counts.fn[i]} missed, {counts.fp[i]} false, F1 {counts.f1(i):.2f}", None)
        for i in worst.tolist()
    ]
    shown = set(worst.tolist())
    for error_type in ErrorType:
        left = INSTRUCTIVE_OF_EACH_TYPE
        for image, why in _examples(matches, outcomes, errors, error_type):
            if left == 0:
                break
            if image not in shown:
                shown.add(image)
                left -= 1
                chosen.append((image, why, error_type))
    return [_picture(matches, outcomes, counts, *choice) for choice in chosen]


def _count(matches: MatchTable, outcomes: Outcomes) -> _Counts:
    image, images = matches.detections.image, len(matches.images)
    return _Counts(
        tp=np.bincount(image[outcomes.true], minlength=images),
        fp=np.bincount(image[outcomes.false], minlength=images),
        fn=np.bincount(matches.objects.image[outcomes.missed], minlength=images),
    )


def _categories(matches: MatchTable, outcomes: Outcomes, image: int) -> list[str]:
    """The categories of an image's errors, most errors first."""
    detections, objects = matches.detections, matches.objects
    false = detections.category[outcomes.false & (detections.image == image)]
    missed = objects.category[outcomes.missed & (objects.image == image)]
    errors = np.bincount(np.concatenate([false, missed]), minlength=len(matches.names))
    most_first = np.argsort(-errors, kind="stable")[: np.count_nonzero(errors)]
    return [matches.names[k] for k in most_first.tolist()]


def _picture(
    matches: MatchTable,
    outcomes: Outcomes,
    counts: _Counts,
    image: int,
    why: str,
    error: ErrorType | None,
) -> Picture:
    return Picture(
        image_id=matches.images[image]["id"],
        file_name=matches.images[image].get("file_name", ""),
        group="worst" if error is None else "instructive",
        why=why,
        tp=int(counts.tp[image]),
        fp=int(counts.fp[image]),
        fn=int(counts.fn[image]),
        f1=counts.f1(image),
        error=None if error is None else error.name.lower(),
        categories=_categories(matches, outcomes, image),
    )


def _examples(
    matches: MatchTable, outcomes: Outcomes, errors: Errors, error_type: ErrorType
) -> Iterator[tuple[int, str]]:
    """(image, why) for each error of a type, the clearest first."""
    detections, objects, names = matches.detections, matches.objects, matches.names
    if error_type is ErrorType.MISSED:
        rows = np.flatnonzero(errors.missed)
        for row in rows[np.argsort(-objects.area[rows], kind="stable")].tolist():
            yield int(objects.image[row]), f"missed: {names[objects.category[row]]}"
        return
    rows = np.flatnonzero(outcomes.false & (errors.kind == error_type))
    for row in rows[np.argsort(-detections.score[rows], kind="stable")].tolist():
        category = names[detections.category[row]]
        why = f"{error_type.name.lower()}: {category} at score {detections.score[row]:.2f}"
        if error_type is ErrorType.CLASSIFICATION:
            why += f" on {names[objects.category[errors.target[row]]]}"
        yield int(detections.image[row]), why
