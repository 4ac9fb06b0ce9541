"""Whether a score says how often the detector is right."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from hotcoco import metrics

from instseg.evaluation.reasons.matches import MatchTable

logger = logging.getLogger(__name__)

BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Detections of about one score.

    Args:
        low: scores from here,
        high: to below here; the last bin holds 1 as well.
        confidence: mean score; 0 where there are no detections.
        accuracy: the share that found an object at IoU 0.5; 0 where there are no detections.
        count: number of detections.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), eq. 3 and 5.

    As Küppers et al., "Multivariate Confidence Calibration for Object Detection" (CVPR workshops
    2020) take it to detectors: accuracy is precision, of detections rather than of images.

    Args:
        ece: expected calibration error, the mean over detections of |accuracy - confidence| of
            their bin.
        mce: the largest of these gaps.
        bins: ten of equal width.
    """

    ece: float
    mce: float
    bins: list[CalibrationBin]


def calibrate(matches: MatchTable) -> Calibration:
    """Compare scores with the precision reached.

    Scores outside [0, 1], which COCO allows, fall in the first or last bin, with a warning.
    """
    score, correct = matches.detections.score, matches.detections.found >= 0
    outside = int(np.count_nonzero((score < 0) | (score > 1)))
    if outside:
        logger.warning(
            "calibration: %d of %d scores are outside [0, 1], so no probabilities",
            outside,
            len(score),
        )
    ece, mce = metrics.calibration_error(score, correct, BINS)
    bins = [
        CalibrationBin(
            low=round(b["bin_lower"], 9),
            high=round(b["bin_upper"], 9),
            confidence=b["avg_confidence"],
            accuracy=b["avg_accuracy"],
            count=b["count"],
        )
        for b in metrics.calibration_curve(score, correct, BINS)
    ]
    return Calibration(ece, mce, bins)
