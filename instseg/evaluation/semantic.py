"""Scores of class maps, collected image by image: accuracy, Jaccard, Dice, cosine, boundary F."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hotcoco import metrics

from instseg.evaluation.boundary_f import boundary_scores, tolerance_in_pixels
from instseg.evaluation.maps import (
    PerImageEvaluator,
    check_same_size,
    integer_map,
    mean_known,
)


@dataclass(frozen=True)
class SemanticScores:
    """What was measured on class maps. Scores lie in [0, 1], or are -1 where undefined.

    Args:
        stats: ``pixel_accuracy`` over all pixels, and the means over classes of the figures in
            ``per_class``: ``mean_accuracy``, ``jaccard``, ``dice``, ``cosine``, ``boundary_f``.
            A class in neither truth nor prediction is left out of the means.
        per_class: by class name, with X the class's pixels in the prediction and Y those in the
            truth over all images: ``accuracy`` |X n Y| / |Y| (-1 where Y is empty), ``jaccard``
            |X n Y| / |X u Y|, ``dice`` 2 |X n Y| / (|X| + |Y|), ``cosine``
            |X n Y| / (|X|^1/2 |Y|^1/2). The last three are -1 where both are empty, and 0 where one
            is. With boundaries also ``boundary_precision``, ``boundary_recall``, ``boundary_f``.
        confusion: pixels, ``confusion[true class][predicted class]``.
        images: how many images were scored.
        pixels: how many pixels, the ignored ones left out.
    """

    stats: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: tuple[tuple[int, ...], ...]
    images: int
    pixels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


class _Counts(NamedTuple):
    """One image: the cells of its confusion matrix that are not zero, and its boundary scores."""

    cells: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    boundary: dict[int, tuple[float, float, float]]


class SemanticEvaluator(PerImageEvaluator[_Counts]):
    """Scores integer class maps ``[H, W]`` (arrays or CPU tensors), streamed.

    Args:
        classes: the number of classes or their names; class ids are 0 .. C - 1.
        ignore_label: pixels with this value in the truth count nowhere; None: there are none.
        boundary_tolerance: how far apart two boundary pixels may lie to match: below 1 a fraction
            of the image's diagonal, rounded up, otherwise pixels; None: no boundary scores.
            See `instseg.evaluation.boundary_f`.

    Raises:
        ValueError: no class, two of one name, a class id that is to be ignored, or a tolerance
            that is negative or not finite. `update` raises it for maps that are not
            ``[H, W]`` of integers, differ in size, or hold a value that is no class id.
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        ignore_label: int | None = 255,
        boundary_tolerance: float | None = 0.0075,
    ) -> None:
        names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"classes must be one or more distinct names, got {classes!r}")
        if ignore_label is not None and 0 <= ignore_label < len(names):
            raise ValueError(
                f"ignore_label {ignore_label} is the class {names[ignore_label]!r}: "
                f"give a value outside 0 .. {len(names) - 1}, or None"
            )
        if boundary_tolerance is not None:
            tolerance_in_pixels(boundary_tolerance, (1, 1))
        super().__init__(
            classes=names, ignore_label=ignore_label, boundary_tolerance=boundary_tolerance
        )
        self._names = names
        self._ignore_label = ignore_label
        self._tolerance = boundary_tolerance

    def _record(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> _Counts:
        predicted, truth = integer_map(prediction, "prediction"), integer_map(target, "target")
        check_same_size(predicted, truth)
        valid = np.full(truth.shape, True)
        if self._ignore_label is not None:
            valid = truth != self._ignore_label
        num_classes = len(self._names)
        for name, values in (("prediction", predicted[valid]), ("target", truth[valid])):
            wrong = values[(values < 0) | (values >= num_classes)]
            if wrong.size:
                raise ValueError(
                    f"the {name} holds {wrong[0]}, which is no class id (0 .. {num_classes - 1})"
                    f" nor ignored in the truth (ignore_label {self._ignore_label})"
                )
        # hotcoco takes no negative label, so the ignored one becomes the first that is no class.
        confusion = metrics.pixel_confusion(
            np.where(valid, truth, num_classes),
            np.where(valid, predicted, 0),
            num_classes,
            ignore_index=num_classes,
        )
        cells = np.flatnonzero(confusion)
        boundary = {}
        if self._tolerance is not None:
            boundary = boundary_scores(predicted, truth, valid, self._tolerance)
        return _Counts(cells, confusion.ravel()[cells].astype(np.int64), boundary)

    def compute(self) -> SemanticScores:
        """The scores over the images so far."""
        confusion = self._confusion()
        table = _overlap(confusion)
        if self._tolerance is not None:
            table |= self._boundary()
        pixels = int(confusion.sum())
        accuracy = float(np.trace(confusion) / pixels) if pixels else -1.0
        means = {k: mean_known(v) for k, v in table.items() if not k.startswith("boundary_")}
        stats = {"pixel_accuracy": accuracy, "mean_accuracy": means.pop("accuracy")} | means
        if "boundary_f" in table:
            stats["boundary_f"] = mean_known(table["boundary_f"])
        return SemanticScores(
            stats=stats,
            per_class={
                name: {key: float(values[i]) for key, values in table.items()}
                for i, name in enumerate(self._names)
            },
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            images=len(self._records),
            pixels=pixels,
        )

    def _confusion(self) -> npt.NDArray[np.int64]:
        total = np.zeros(len(self._names) ** 2, dtype=np.int64)
        for record in self._records.values():
            total[record.cells] += record.pixels
        return total.reshape(len(self._names), -1)

    def _boundary(self) -> dict[str, npt.NDArray[np.float64]]:
        """Means over the images in which each figure is defined, ``float64 [C]`` each."""
        known = [
            [r.boundary[c] for r in self._records.values() if c in r.boundary]
            for c in range(len(self._names))
        ]
        keys = ("boundary_precision", "boundary_recall", "boundary_f")
        return {
            key: np.array([mean_known([scores[i] for scores in of_class]) for of_class in known])
            for i, key in enumerate(keys)
        }


def _overlap(confusion: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Accuracy, Jaccard, Dice and cosine, ``float64 [C]`` each, from a confusion matrix."""
    both = np.diagonal(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)

    def ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.divide(
            numerator, denominator, out=np.full(len(both), -1.0), where=denominator > 0
        )

    cosine = ratio(both, np.sqrt(truth) * np.sqrt(predicted))
    cosine[(truth > 0) != (predicted > 0)] = 0.0
    return {
        "accuracy": ratio(both, truth),
        "jaccard": ratio(both, truth + predicted - both),
        "dice": ratio(2 * both, truth + predicted),
        "cosine": cosine,
    }
