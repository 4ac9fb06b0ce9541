"""Foreground-restricted Rand and information scores of membrane maps in electron microscopy.

Source: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 9:142, 2015, section on evaluation; the measures of the
ISBI 2012 challenge, V_rand and V_info after border thinning.

Pixels of the truth's membranes are left out. Of the others let p_ij be the share that lies in
segment i of the prediction S and in segment j of the truth T, s_i and t_j the sums over j and i,
H the entropy and I the mutual information. Then

    V_rand = sum p_ij^2 / (a sum s_i^2 + (1 - a) sum t_j^2)
    V_info = I(S;T) / ((1 - a) H(S) + a H(T))

with a = 1/2. At a = 0 they are the split scores, which fall where a cell is cut in pieces; at a = 1
the merge scores, which fall where cells flow together.

Two things the paper leaves to its software (a Fiji script, which thins borders to lines by a
watershed): here a predicted membrane pixel inside a true cell goes to the segment nearest to it, so
that the width of predicted membranes does not count; and cells are 4-connected, as in that script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from instseg.evaluation.maps import PerImageEvaluator, check_same_size, integer_map

SCORE_NAMES = (
    "v_rand",
    "v_rand_split",
    "v_rand_merge",
    "v_info",
    "v_info_split",
    "v_info_merge",
)

THRESHOLDS = tuple(i / 10 for i in range(1, 10))


def label_cells(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """4-connected components of ``[H, W]``: 0 outside of ``cells``, 1, 2, ... inside."""
    _, labels = cv2.connectedComponents(cells.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return labels.astype(np.int32, copy=False)


def thin_borders(segments: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Give each pixel of 0 the label nearest to it (by OpenCV's 5 x 5 chamfer distance).

    Args:
        segments: labels ``[H, W]``, 0 for membrane. If all is membrane it is returned as it is:
            one segment.
    """
    border = segments == 0
    if border.all():
        return segments
    _, nearest = cv2.distanceTransformWithLabels(
        border.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # ``nearest`` numbers the pixels outside the border; which number is which, each one tells.
    labels = np.zeros(nearest.max() + 1, dtype=np.int32)
    labels[nearest[~border]] = segments[~border]
    return labels[nearest]


def em_scores(
    segments: npt.NDArray[np.int32], truth: npt.NDArray[np.int32]
) -> dict[str, float] | None:
    """The scores of one slice by `SCORE_NAMES`, in [0, 1]; None where the truth has no cell.

    Where nothing can be split (the prediction is one segment) the split scores are 1, where
    nothing can be merged (the truth is one) the merge scores.

    Args:
        segments: predicted labels ``[H, W]``, 0 for membrane.
        truth: true labels of the same size, 0 for membrane.

    Raises:
        ValueError: the sizes differ.
    """
    check_same_size(segments, truth)
    inside = truth > 0
    if not inside.any():
        return None
    base = int(truth.max()) + 1
    codes = thin_borders(segments)[inside].astype(np.int64) * base + truth[inside]
    pairs, shared = np.unique(codes, return_counts=True)
    of_s, of_t = _sums(shared, pairs // base), _sums(shared, pairs % base)
    s2, t2, p2 = (float((n**2).sum()) for n in (of_s, of_t, shared.astype(np.float64)))
    h_s, h_t, h_st = _entropy(of_s), _entropy(of_t), _entropy(shared)
    information = max(h_s + h_t - h_st, 0.0)
    return {
        "v_rand": p2 / (0.5 * s2 + 0.5 * t2),
        "v_rand_split": p2 / t2,
        "v_rand_merge": p2 / s2,
        "v_info": _quotient(information, 0.5 * h_s + 0.5 * h_t),
        "v_info_split": _quotient(information, h_s),
        "v_info_merge": _quotient(information, h_t),
    }


def _sums(counts: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The sum of the counts of each group."""
    index = np.unique(groups, return_inverse=True)[1]
    return np.bincount(index, weights=counts).astype(np.float64)


def _entropy(counts: npt.NDArray[Any]) -> float:
    """In nats."""
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _quotient(information: float, entropy: float) -> float:
    return min(information / entropy, 1.0) if entropy > 0 else 1.0


@dataclass(frozen=True)
class EmScores:
    """Mean scores over slices; in [0, 1], or -1 where no slice has a cell.

    Args:
        stats: `SCORE_NAMES`, at the threshold where the mean V_rand (for ``v_rand*``) or V_info
            (for ``v_info*``) is highest, and these as ``v_rand_threshold``, ``v_info_threshold``.
        thresholds: of the membrane probability.
        per_threshold: each of `SCORE_NAMES` at each threshold.
        images: how many slices were given, those without a cell included.
    """

    stats: dict[str, float]
    thresholds: tuple[float, ...]
    per_threshold: dict[str, tuple[float, ...]]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class EmEvaluator(PerImageEvaluator[npt.NDArray[np.float64] | None]):
    """Scores membrane probabilities ``[H, W]`` in [0, 1] (arrays or CPU tensors), slice by slice.

    The truth is a map of integers ``[H, W]``: 0 is membrane, all else cell; its 4-connected
    components are the true segments. Those of the pixels whose membrane probability is below a
    threshold are the predicted ones. One threshold serves all slices.

    Args:
        thresholds: of the membrane probability, in (0, 1].

    Raises:
        ValueError: no threshold, or one outside (0, 1]. `update` raises it for maps that differ in
            size or probabilities that are not in [0, 1].
    """

    def __init__(self, *, thresholds: Sequence[float] = THRESHOLDS) -> None:
        if not thresholds or not all(0 < t <= 1 for t in thresholds):
            raise ValueError(f"thresholds must be one or more numbers in (0, 1], got {thresholds}")
        self._thresholds = tuple(thresholds)
        super().__init__(thresholds=self._thresholds)

    def _record(
        self, prediction: npt.ArrayLike, target: npt.ArrayLike
    ) -> npt.NDArray[np.float64] | None:
        membrane, truth = np.asarray(prediction), label_cells(integer_map(target, "target") != 0)
        check_same_size(membrane, truth)
        if not ((membrane >= 0) & (membrane <= 1)).all():
            raise ValueError(
                "the prediction must hold membrane probabilities in [0, 1], got values from "
                f"{membrane.min()} to {membrane.max()}"
            )
        rows = [em_scores(label_cells(membrane < t), truth) for t in self._thresholds]
        known = [[row[name] for name in SCORE_NAMES] for row in rows if row is not None]
        return np.array(known) if known else None

    def compute(self) -> EmScores:
        """The scores over the slices so far."""
        known = [record for record in self._records.values() if record is not None]
        unknown = np.full((len(self._thresholds), len(SCORE_NAMES)), -1.0)
        means = np.mean(known, axis=0) if known else unknown
        curves = {name: tuple(means[:, i].tolist()) for i, name in enumerate(SCORE_NAMES)}
        stats: dict[str, float] = {}
        for score in ("v_rand", "v_info"):
            best = int(np.argmax(curves[score]))
            stats |= {name: curves[name][best] for name in SCORE_NAMES if name.startswith(score)}
            stats[f"{score}_threshold"] = self._thresholds[best] if known else -1.0
        return EmScores(stats, self._thresholds, curves, len(self._records))
