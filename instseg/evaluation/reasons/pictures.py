"""Which images are worth looking at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from instseg.evaluation.reasons.errors import Errors, ErrorType
from instseg.evaluation.reasons.matches import Indices, Matches
from instseg.evaluation.reasons.thresholds import Operation

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


def choose_pictures(matches: Matches, operation: Operation, errors: Errors) -> list[Picture]:
    """At most 24 images, each once: those of lowest F1, and clear examples of each type of error.

    The worst are at most half of the images with an error, to leave examples over. Of equal F1 the
    image with more errors is worse. Examples are the detections of highest score, and the largest
    of the missed objects, each in an image of its own.
    """
    counts = _count(matches, operation)
    faulty = np.flatnonzero(counts.errors)
    f1 = np.array([counts.f1(i) for i in faulty.tolist()])
    worst = faulty[np.lexsort((-counts.errors[faulty], f1))]
    worst = worst[: min(WORST, -(-len(faulty) // 2))]
    pictures = [
        _picture(
            matches,
            counts,
            image,
            why=f"{counts.fn[image]} missed, {counts.fp[image]} false, F1 {counts.f1(image):.2f}",
        )
        for image in worst.tolist()
    ]
    shown = set(worst.tolist())
    for error_type in ErrorType:
        left = INSTRUCTIVE_OF_EACH_TYPE
        for image, why in _examples(matches, errors, error_type):
            if left == 0:
                break
            if image not in shown:
                shown.add(image)
                left -= 1
                pictures.append(_picture(matches, counts, image, why=why, error=error_type))
    return pictures


def _count(matches: Matches, operation: Operation) -> _Counts:
    images = len(matches.images)
    true = operation.kept & (matches.detections.found >= 0)
    kept = np.bincount(matches.detections.image[operation.kept], minlength=images)
    tp = np.bincount(matches.detections.image[true], minlength=images)
    return _Counts(tp, kept - tp, np.bincount(matches.objects.image, minlength=images) - tp)


def _picture(
    matches: Matches, counts: _Counts, image: int, *, why: str, error: ErrorType | None = None
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
    )


def _examples(matches: Matches, errors: Errors, error_type: ErrorType) -> Iterator[tuple[int, str]]:
    """(image, why) for each error of a type, the clearest first."""
    detections, objects, names = matches.detections, matches.objects, matches.names
    if error_type is ErrorType.MISSED:
        rows = np.flatnonzero(errors.missed)
        for row in rows[np.argsort(-objects.area[rows], kind="stable")].tolist():
            yield int(objects.image[row]), f"missed: {names[objects.category[row]]}"
        return
    rows = np.flatnonzero(errors.kind == error_type)
    for row in rows[np.argsort(-detections.score[rows], kind="stable")].tolist():
        category = names[detections.category[row]]
        why = f"{error_type.name.lower()}: {category} at score {detections.score[row]:.2f}"
        if error_type is ErrorType.CLASSIFICATION:
            why += f" on {names[objects.category[errors.target[row]]]}"
        yield int(detections.image[row]), why
