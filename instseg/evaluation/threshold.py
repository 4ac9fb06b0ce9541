"""ROC and precision-recall of a foreground probability over its threshold, streamed.

Each image is reduced to a histogram of its scores, so memory does not grow with the pixels. The
thresholds are i / bins, and all counts at them are exact. Area and average precision take scores
that fall in one bin for equal: they too are exact for quantised scores, such as multiples of 1/255.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from instseg.evaluation.maps import PerImageEvaluator, check_same_size, integer_map


@dataclass(frozen=True)
class ThresholdScores:
    """Figures over the threshold; -1 where there is no pixel to define them.

    A pixel counts as foreground where its score is >= the threshold.

    Args:
        stats: ``auc``, the area under the ROC curve (trapezoids, so a tie counts one half);
            ``average_precision``, the sum of precision times gain in recall; and the best
            ``youden`` (true less false positive rate), ``f1`` and ``jaccard``, each with the
            ``_threshold`` that reaches it: the middle one of a run of equally good thresholds,
            of several such runs the lowest.
        thresholds: ascending, 0 .. 1.
        true_positive_rate: at each threshold; also called recall.
        false_positive_rate: at each threshold.
        precision: at each threshold; 1 where nothing is called foreground.
        images: how many images were scored.
        positives: foreground pixels of the truth.
        negatives: background pixels of the truth.
    """

    stats: dict[str, float]
    thresholds: tuple[float, ...]
    true_positive_rate: tuple[float, ...]
    false_positive_rate: tuple[float, ...]
    precision: tuple[float, ...]
    images: int
    positives: int
    negatives: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class _Histogram(NamedTuple):
    """The bins of one image that are not empty; foreground follows background."""

    bins: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int64]


class ThresholdEvaluator(PerImageEvaluator[_Histogram]):
    """Scores foreground probabilities ``[H, W]`` in [0, 1] (arrays or CPU tensors), streamed.

    The truth is a map ``[H, W]`` of 0 (background) and 1.

    Args:
        bins: how many thresholds above 0; a power of two, for which scaling a score is exact.
            An image takes at most 24 bytes a bin.
        ignore_label: pixels with this value in the truth count nowhere; None: there are none.

    Raises:
        ValueError: ``bins`` is no power of two, or the label to ignore is 0 or 1. `update` raises
            it for maps that differ in size, scores that are not in [0, 1], or other truth.
    """

    def __init__(self, *, bins: int = 1024, ignore_label: int | None = 255) -> None:
        if bins < 1 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two, such as 1024, got {bins}")
        if ignore_label in (0, 1):
            raise ValueError(f"ignore_label {ignore_label} is background or foreground")
        super().__init__(bins=bins, ignore_label=ignore_label)
        self._bins = bins
        self._ignore_label = ignore_label

    def _record(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> _Histogram:
        scores, truth = np.asarray(prediction), integer_map(target, "target")
        check_same_size(scores, truth)
        if self._ignore_label is not None:
            valid = truth != self._ignore_label
            scores, truth = scores[valid], truth[valid]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(
                "the prediction must hold probabilities in [0, 1], got values from "
                f"{scores.min()} to {scores.max()}"
            )
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError(
                f"the target must hold 0, 1 or the ignore_label {self._ignore_label}, got values "
                f"from {truth.min()} to {truth.max()}"
            )
        index = (scores.astype(np.float64) * self._bins).astype(np.int64)
        counts = np.bincount((index + truth * (self._bins + 1)).ravel())
        filled = np.flatnonzero(counts)
        return _Histogram(filled.astype(np.int32), counts[filled])

    def compute(self) -> ThresholdScores:
        """The scores over the images so far."""
        total = np.zeros(2 * (self._bins + 1), dtype=np.int64)
        for record in self._records.values():
            total[record.bins] += record.pixels
        # What is at or above each threshold, thresholds ascending.
        fp, tp = np.cumsum(total.reshape(2, -1)[:, ::-1], axis=1)[:, ::-1]
        thresholds = np.arange(self._bins + 1) / self._bins
        tpr, fpr = _ratio(tp, tp[0]), _ratio(fp, fp[0])
        precision = np.where(tp + fp > 0, _ratio(tp, tp + fp), 1.0)
        return ThresholdScores(
            stats=_areas(tpr, fpr, precision) | _best(tp, fp, thresholds),
            thresholds=tuple(thresholds.tolist()),
            true_positive_rate=tuple(tpr.tolist()),
            false_positive_rate=tuple(fpr.tolist()),
            precision=tuple(precision.tolist()),
            images=len(self._records),
            positives=int(tp[0]),
            negatives=int(fp[0]),
        )


def _ratio(numerator: npt.NDArray[np.int64], denominator: Any) -> npt.NDArray[np.float64]:
    """The quotient; -1 where the denominator is 0."""
    undefined = np.full(len(numerator), -1.0)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator) > 0)


def _areas(
    tpr: npt.NDArray[np.float64], fpr: npt.NDArray[np.float64], precision: npt.NDArray[np.float64]
) -> dict[str, float]:
    """The areas under both curves, which end above the last threshold, where all is background."""
    areas = {"auc": -1.0, "average_precision": -1.0}
    if tpr[0] > 0:
        areas["average_precision"] = float((-np.diff(tpr, append=0.0) * precision).sum())
        if fpr[0] > 0:
            heights = (tpr + np.append(tpr[1:], 0.0)) / 2
            areas["auc"] = float((-np.diff(fpr, append=0.0) * heights).sum())
    return areas


def _best(
    tp: npt.NDArray[np.int64], fp: npt.NDArray[np.int64], thresholds: npt.NDArray[np.float64]
) -> dict[str, float]:
    positives, negatives = tp[0], fp[0]
    criteria = {}
    if positives:
        if negatives:
            criteria["youden"] = tp / positives - fp / negatives
        criteria["f1"] = 2 * tp / (tp + fp + positives)
        criteria["jaccard"] = tp / (fp + positives)
    best = {}
    for name in ("youden", "f1", "jaccard"):
        best[name] = best[f"{name}_threshold"] = -1.0
        if name in criteria:
            best[name] = float(criteria[name].max())
            equal = np.flatnonzero(criteria[name] == best[name])
            # The first run of neighbours among them: its members minus their rank are one number.
            run = equal[equal - np.arange(len(equal)) == equal[0]]
            best[f"{name}_threshold"] = float(thresholds[run[(len(run) - 1) // 2]])
    return best
