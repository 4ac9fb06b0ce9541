"""What the evaluators of maps share: records by image, and checks of the maps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

ImageId = int | str
Record = TypeVar("Record")


class MapScores(Protocol):
    """What an evaluator of maps gives."""

    @property
    def stats(self) -> dict[str, float]:
        """Named figures; -1 where undefined."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""


class PerImageEvaluator(ABC, Generic[Record]):
    """What the evaluators of maps share: one small record for each image, kept by its id.

    Records are counts, never pixels, so an evaluator is small, can be pickled, and an image that
    comes twice (a distributed sampler pads with repeats) counts once, also across a merge.

    Args:
        settings: what must be equal for two evaluators to be merged.

    Attributes:
        bounds: least and greatest value of the figures that are not in [0, 1].
    """

    bounds: Mapping[str, tuple[float, float]] = {}

    def __init__(self, **settings: object) -> None:
        self._settings = settings
        self._records: dict[ImageId, Record] = {}

    @abstractmethod
    def _record(self, prediction: Any, target: Any) -> Record:
        """What is to be kept of one image."""

    def update(
        self, image_ids: Sequence[ImageId], predictions: Sequence[Any], targets: Sequence[Any]
    ) -> None:
        """Add some images; one that was added before is passed over.

        Args:
            image_ids: integers or names.
            predictions: one for each image; the class says of what form.
            targets: the truth, likewise.

        Raises:
            ValueError: the lengths differ, or an image cannot be scored; the message names it.
        """
        if not len(image_ids) == len(predictions) == len(targets):
            raise ValueError(
                f"{len(image_ids)} image ids, {len(predictions)} predictions and "
                f"{len(targets)} targets: give one of each for every image"
            )
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            if image_id in self._records:
                continue
            try:
                self._records[image_id] = self._record(prediction, target)
            except ValueError as error:
                raise ValueError(f"image {image_id!r}: {error}") from error

    def merge(self, other: Self) -> None:
        """Add what ``other`` collected; images that both have count once, as they are here.

        Raises:
            ValueError: ``other`` is of another class or was made with other settings.
        """
        if type(other) is not type(self) or other._settings != self._settings:
            raise ValueError(
                "only evaluators of one class and equal settings merge: "
                f"{type(self).__name__} {self._settings} and "
                f"{type(other).__name__} {other._settings}"
            )
        self._records = other._records | self._records

    @abstractmethod
    def compute(self) -> MapScores:
        """The scores over the images so far."""

    def __len__(self) -> int:
        """How many images were added."""
        return len(self._records)

    def drawn(self, counts: Sequence[int] | npt.NDArray[np.integer]) -> Self:
        """An evaluator that has seen image number i of this one ``counts[i]`` times."""
        again = copy.copy(self)
        records = [r for r, n in zip(self._records.values(), counts, strict=True) for _ in range(n)]
        again._records = dict(enumerate(records))
        return again

    def reset(self) -> None:
        """Forget all images."""
        self._records.clear()


def integer_map(value: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    """``value`` as ``int64 [H, W]``; a tensor must be on the CPU.

    Raises:
        ValueError: it is not a map of integers or bools, or has no pixel; ``name`` says what is.
    """
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "iub" or array.size == 0:
        raise ValueError(
            f"the {name} must be a map of integers [H, W], got {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)


def check_same_size(prediction: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    """Raise ValueError where the two maps differ in size."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"the prediction is of size {list(prediction.shape)} and the target of "
            f"{list(target.shape)} [H, W]: resize the prediction to the original image"
        )


def mean_known(values: npt.ArrayLike) -> float:
    """The mean of the values that are defined (not -1); -1 if none is."""
    array = np.asarray(values, dtype=np.float64)
    known = array[array > -1]
    return float(known.mean()) if known.size else -1.0
