"""From probabilities to labels: thresholds chosen on a validation set, or from the map itself.

All apply to maps of one foreground: two exclusive classes, of which 0 is the background, or
classes that may overlap, each by itself. `SemanticMap.resized` finds labels by the map's one
threshold: label anew after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from skimage.filters import threshold_local, threshold_otsu

from instseg.evaluation.maps import ImageId
from instseg.evaluation.threshold import ThresholdEvaluator, ThresholdScores
from instseg.structures import IGNORE, SemanticMap

Criterion = Literal["youden", "f1", "jaccard"]
Method = Literal["local", "otsu"]


class ThresholdChooser:
    """Chooses each foreground's threshold on predictions with known truth, streamed.

    Args:
        criterion: what the threshold maximises over all pixels: "youden", true less false
            positive rate (ROC); "f1", the harmonic mean of precision and recall (PR); "jaccard".
        bins: thresholds that are tried are multiples of 1 / bins; a power of two.

    Raises:
        ValueError: an unknown criterion or no power of two. `update` raises it for maps of another
            kind or number of classes, or that differ in size.
    """

    def __init__(self, criterion: Criterion = "f1", *, bins: int = 1024) -> None:
        if criterion not in get_args(Criterion):
            known = ", ".join(get_args(Criterion))
            raise ValueError(f"criterion must be one of {known}, got {criterion!r}")
        self.criterion = criterion
        self._bins = bins
        self._evaluators: list[ThresholdEvaluator] = []
        self._evaluator()  # judges the bins here, not at the first image

    def update(
        self,
        image_ids: Sequence[ImageId],
        predictions: Sequence[SemanticMap],
        targets: Sequence[SemanticMap],
    ) -> None:
        """Add some images; one that was added before is passed over."""
        if not len(image_ids) == len(predictions) == len(targets):
            raise ValueError(
                f"{len(image_ids)} image ids, {len(predictions)} predictions and "
                f"{len(targets)} targets: give one of each for every image"
            )
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            scores = _foregrounds(prediction)
            truths = _truths(target)
            self._evaluators = self._evaluators or [self._evaluator() for _ in scores]
            if not len(scores) == len(truths) == len(self._evaluators):
                raise ValueError(
                    f"image {image_id!r}: {len(scores)} foreground classes in the prediction, "
                    f"{len(truths)} in the target, {len(self._evaluators)} in the images before"
                )
            for evaluator, score, truth in zip(self._evaluators, scores, truths, strict=True):
                evaluator.update([image_id], [score], [truth])

    def merge(self, other: Self) -> None:
        """Add what ``other`` collected; images that both have count once.

        Raises:
            ValueError: its settings or classes differ.
        """
        if (other.criterion, other._bins) != (self.criterion, self._bins):
            raise ValueError(
                f"only choosers of equal settings merge: {self.criterion} of {self._bins} bins "
                f"and {other.criterion} of {other._bins}"
            )
        counts = len(self._evaluators), len(other._evaluators)
        if all(counts) and counts[0] != counts[1]:
            raise ValueError(f"{counts[0]} foreground classes here, {counts[1]} there")
        if not self._evaluators:
            self._evaluators = [self._evaluator() for _ in other._evaluators]
        for own, others in zip(self._evaluators, other._evaluators, strict=False):
            own.merge(others)

    def scores(self) -> list[ThresholdScores]:
        """The curves of each foreground class over its threshold."""
        return [evaluator.compute() for evaluator in self._evaluators]

    def thresholds(self) -> list[float]:
        """The best threshold of each foreground class.

        Raises:
            ValueError: the images so far have no pixel of a class ("youden": of its background).
        """
        chosen = [scores.stats[f"{self.criterion}_threshold"] for scores in self.scores()]
        if not chosen or min(chosen) < 0:
            unknown = [label for label, value in enumerate(chosen) if value < 0]
            raise ValueError(
                f"no threshold can be chosen by {self.criterion}: "
                + (f"the truth lacks pixels of labels {unknown}" if chosen else "no images given")
            )
        return chosen

    def _evaluator(self) -> ThresholdEvaluator:
        return ThresholdEvaluator(bins=self._bins, ignore_label=IGNORE)


@dataclass(frozen=True)
class FixedThreshold:
    """Labels anew a map by thresholds, one for each foreground class: those that reach it are in.

    Args:
        thresholds: as of `ThresholdChooser.thresholds`; in 0..1.
    """

    thresholds: Sequence[float]

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 <= t <= 1 for t in self.thresholds):
            raise ValueError(f"thresholds must be in 0..1, got {list(self.thresholds)}")

    def __call__(self, semantic: SemanticMap) -> SemanticMap:
        """The map with its labels found anew.

        Raises:
            ValueError: it has no scores, or another number of foreground classes.
        """
        scores = _foregrounds(semantic)
        if len(scores) != len(self.thresholds):
            raise ValueError(
                f"{len(self.thresholds)} thresholds for {len(scores)} foreground classes"
            )
        wanted = np.array(self.thresholds, dtype=np.float64)[:, None, None]
        return _relabelled(semantic, scores >= wanted)


@dataclass(frozen=True)
class AdaptiveThreshold:
    """Labels anew a map by thresholds that follow from its own scores.

    Args:
        method: "local": each pixel's threshold is the Gaussian-weighted mean of the scores around
            it, less ``offset``; "otsu": one threshold for each class (Otsu, 1979).
        window: side of the neighbourhood of "local" in pixels, odd.
        offset: of "local".
        bounds: thresholds are held in this range. For where an image has no object, or a
            neighbourhood lies within one, a threshold between the scores there parts only noise.
    """

    method: Method = "local"
    window: int = 51
    offset: float = 0.0
    bounds: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"method must be one of {known}, got {self.method!r}")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 pixels, got {self.window}")
        low, high = self.bounds
        if not 0 < low <= high < 1:
            raise ValueError(f"bounds must be ascending between 0 and 1, got {self.bounds}")

    def __call__(self, semantic: SemanticMap) -> SemanticMap:
        """The map with its labels found anew.

        Raises:
            ValueError: it has no scores, or more than two exclusive classes.
        """
        scores = _foregrounds(semantic)
        return _relabelled(semantic, np.stack([score > self._threshold(score) for score in scores]))

    def _threshold(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.method == "otsu":
            threshold = threshold_otsu(score)
        else:
            threshold = threshold_local(score, self.window, method="gaussian", offset=self.offset)
        clipped: npt.NDArray[np.float32] = np.clip(threshold, *self.bounds)
        return clipped


def _foregrounds(semantic: SemanticMap) -> npt.NDArray[np.float32]:
    """``[F, H, W]``: the probabilities of what is not background."""
    if semantic.scores is None:
        raise ValueError("the map has no scores: a threshold needs a prediction")
    scores: npt.NDArray[np.float32] = semantic.scores.detach().float().cpu().numpy()
    if semantic.is_multi_label:
        return scores
    if len(scores) != 2:
        raise ValueError(
            f"the map has {len(scores)} exclusive classes: thresholds are for 2, background and "
            "foreground, or for classes that may overlap"
        )
    return scores[1:]


def _truths(target: SemanticMap) -> npt.NDArray[np.uint8]:
    labels: npt.NDArray[np.uint8] = target.labels.cpu().numpy()
    return labels if target.is_multi_label else labels[None]


def _relabelled(semantic: SemanticMap, present: npt.NDArray[np.bool_]) -> SemanticMap:
    labels = torch.from_numpy(present.astype(np.uint8)).to(semantic.labels.device)
    return replace(semantic, labels=labels if semantic.is_multi_label else labels[0])
