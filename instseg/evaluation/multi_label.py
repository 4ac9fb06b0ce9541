"""Scores of maps of classes that may overlap: each class against all that it is not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.evaluation.maps import PerImageEvaluator, mean_known
from instseg.evaluation.semantic import SemanticEvaluator


@dataclass(frozen=True)
class MultiLabelScores:
    """What was measured on overlapping classes. Scores lie in [0, 1], or are -1 where undefined.

    Args:
        stats: the means over classes of the figures in ``per_class``; those that are undefined are
            left out.
        per_class: by class name ``pixel_accuracy`` and the figures of `SemanticScores.per_class`.
        images: how many images were scored.
    """

    stats: dict[str, float]
    per_class: dict[str, dict[str, float]]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class MultiLabelEvaluator(PerImageEvaluator[list[Any]]):
    """Scores maps ``[C, H, W]`` of 0 and 1 (arrays or CPU tensors), streamed.

    Args:
        classes: the names of the C classes.
        ignore_label: pixels with this value in the truth of a class count nowhere in its scores.

    Raises:
        ValueError: see `SemanticEvaluator`; from `update` also for another number of maps.
    """

    def __init__(self, classes: Sequence[str], *, ignore_label: int = 255) -> None:
        super().__init__(classes=list(classes), ignore_label=ignore_label)
        self._names = list(classes)
        self._of_one = SemanticEvaluator(["background", "class"], ignore_label=ignore_label)

    def _record(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> list[Any]:
        """One record of a `SemanticEvaluator` for each class."""
        maps, truths = np.asarray(prediction), np.asarray(target)
        for name, array in (("prediction", maps), ("target", truths)):
            if array.ndim != 3 or len(array) != len(self._names):
                raise ValueError(
                    f"the {name} must be [{len(self._names)}, H, W], a map for each class, "
                    f"got {list(array.shape)}"
                )
        return [self._of_one._record(m, t) for m, t in zip(maps, truths, strict=True)]

    def compute(self) -> MultiLabelScores:
        """The scores over the images so far."""
        per_class = {name: self._scores(k) for k, name in enumerate(self._names)}
        figures = next(iter(per_class.values()))
        stats = {key: mean_known([own[key] for own in per_class.values()]) for key in figures}
        return MultiLabelScores(stats, per_class, len(self))

    def _scores(self, label: int) -> dict[str, float]:
        one = copy.copy(self._of_one)
        one._records = {i: record[label] for i, record in self._records.items()}
        scores = one.compute()
        return {"pixel_accuracy": scores.stats["pixel_accuracy"]} | scores.per_class["class"]
