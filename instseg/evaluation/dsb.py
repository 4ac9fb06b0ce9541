"""Average precision of instances as the 2018 Data Science Bowl defines it.

Source: https://www.kaggle.com/c/data-science-bowl-2018#evaluation. At each IoU threshold .5, .55,
..., .95 an image scores TP / (TP + FP + FN), where a predicted object that overlaps a true one with
an IoU above the threshold is a true positive. The mean over thresholds is the image's score, the
mean over images the result. There are no confidences: all predicted objects count.

An image with neither true nor predicted objects, for which that is 0 / 0, counts 1 here; the
competition defines nothing for it, and each of its training images has an object. By the formula an
image without true objects but with predicted ones counts 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import primitives

from instseg.evaluation.checks import is_int, rle_defect
from instseg.evaluation.ground_truth import compressed
from instseg.evaluation.maps import PerImageEvaluator, check_same_size, integer_map
from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE

_TWENTIETHS = np.arange(10, 20)

IOU_THRESHOLDS = tuple((_TWENTIETHS / 20).tolist())

Objects = npt.ArrayLike | Sequence[RLE]
"""The objects of an image: labels ``[H, W]``, 0 for background, or one run-length code each."""


@dataclass(frozen=True)
class DsbScores:
    """The competition's score. Figures lie in [0, 1]; -1 without any image.

    Args:
        stats: ``AP``, the score; ``AP50`` and ``AP75``, the means over images at one threshold.
        per_threshold: for each of `IOU_THRESHOLDS` the mean over images.
        true_positives: for each threshold, over all images.
        false_positives: likewise.
        false_negatives: likewise.
        images: how many images were scored.
    """

    stats: dict[str, float]
    per_threshold: tuple[float, ...]
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]
    false_negatives: tuple[int, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class DsbEvaluator(PerImageEvaluator[npt.NDArray[np.int64]]):
    """Scores objects given as label maps ``[H, W]`` of integers or as lists of run-length codes.

    The competition's masks do not overlap; true ones must not here. Of predicted ones that do, one
    at most is right about a true object, and the others are false positives.

    Raises:
        ValueError: from `update`, for maps that are not ``[H, W]`` of integers >= 0, codes that
            are malformed, sizes that differ, or true objects that overlap.
    """

    def _record(self, prediction: Objects, target: Objects) -> npt.NDArray[np.int64]:
        """TP, FP and FN at each threshold, ``int64 [3, 10]``."""
        intersections, predicted, true = _overlaps(prediction, target)
        unions = predicted[:, None] + true - intersections
        # In integers, since an IoU of exactly 0.55 is not above 0.55. Above one half a prediction
        # matches one true object at most, so the true objects that are matched are the TP.
        above = 20 * intersections > _TWENTIETHS[:, None, None] * unions
        tp = above.any(axis=1).sum(axis=1)
        return np.stack([tp, len(predicted) - tp, len(true) - tp])

    def compute(self) -> DsbScores:
        """The scores over the images so far."""
        counts = np.array(list(self._records.values()), dtype=np.int64).reshape(-1, 3, 10)
        objects = counts.sum(axis=1)
        scores = np.divide(counts[:, 0], objects, out=np.ones(objects.shape), where=objects > 0)
        per_threshold = scores.mean(axis=0) if len(scores) else np.full(10, -1.0)
        tp, fp, fn = (tuple(row) for row in counts.sum(axis=0).tolist())
        return DsbScores(
            stats={
                "AP": float(per_threshold.mean()),
                "AP50": float(per_threshold[0]),
                "AP75": float(per_threshold[5]),
            },
            per_threshold=tuple(per_threshold.tolist()),
            true_positives=tp,
            false_positives=fp,
            false_negatives=fn,
            images=len(counts),
        )


_Overlaps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _overlaps(prediction: Objects, target: Objects) -> _Overlaps:
    """Pixels that P predicted and T true objects share ``[P, T]``, and their areas [P] and [T]."""
    if not _is_codes(prediction) and not _is_codes(target):
        return _map_overlaps(_labels(prediction, "prediction"), _labels(target, "target"))
    predicted, true = _codes(prediction, "prediction"), _codes(target, "target")
    _check_codes(predicted, true)
    p, t = (np.array([rle.area(c) for c in codes], dtype=np.int64) for codes in (predicted, true))
    if len(true) and rle.area(rle.merge(true)) < t.sum():
        raise ValueError("objects of the target overlap: each pixel may belong to one of them")
    if not len(p) or not len(t):
        return np.zeros((len(p), len(t)), dtype=np.int64), p, t
    iou = primitives.mask_iou(predicted, true, [False] * len(true))
    # Back to whole pixels: I = IoU (P + T) / (1 + IoU).
    return np.rint(iou * (p[:, None] + t) / (1 + iou)).astype(np.int64), p, t


def _map_overlaps(predicted: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> _Overlaps:
    check_same_size(predicted, true)
    # The background is put in, so that it is sure to be the first of the sorted labels.
    ids = [np.unique(np.append(0, m), return_inverse=True)[1][1:] for m in (predicted, true)]
    p, t = (int(i.max()) + 1 for i in ids)
    table = np.bincount(ids[0] * t + ids[1], minlength=p * t).reshape(p, t)
    return table[1:, 1:], table.sum(axis=1)[1:], table.sum(axis=0)[1:]


def _is_codes(objects: Objects) -> bool:
    return isinstance(objects, list | tuple) and all(isinstance(o, dict) for o in objects)


def _labels(objects: Any, name: str) -> npt.NDArray[np.int64]:
    labels = integer_map(objects, name)
    if labels.min() < 0:
        raise ValueError(f"the {name} holds the label {labels.min()}; labels are 0, 1, 2, ...")
    return labels


def _codes(objects: Any, name: str) -> list[RLE]:
    """The objects as run-length codes."""
    if _is_codes(objects):
        return list(objects)
    labels = _labels(objects, name)
    return [rle.encode(labels == i) for i in np.unique(labels[labels > 0])]


def _check_codes(predicted: list[RLE], true: list[RLE]) -> None:
    """Check that all codes are whole and of one size; compress their counts in place."""
    size: Size | None = None
    for name, codes in (("target", true), ("prediction", predicted)):
        for index, code in enumerate(codes):
            where = f"object {index} of the {name}"
            size = size or _size(code, where)
            if defect := rle_defect(code, size):
                raise ValueError(f"{where}: {defect}")
            codes[index] = compressed(code, size)


def _size(code: RLE, where: str) -> Size:
    given = code.get("size")
    if isinstance(given, list | tuple) and len(given) == 2:
        height, width = given
        if is_int(height) and is_int(width) and min(height, width) > 0:
            return height, width
    raise ValueError(f"{where}: key 'size' must be [height, width], got {given!r}")
