"""Evaluators of maps as the engine calls them: with predictions alone, the truth looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from instseg.evaluation.maps import PerImageEvaluator

PredictionT = TypeVar("PredictionT")
TruthT = TypeVar("TruthT")


@dataclass(frozen=True)
class Scorer(Generic[PredictionT, TruthT]):
    """An evaluator, and what of predictions and truth it is given.

    Args:
        evaluator: scores pairs.
        prediction: picks what it scores out of a prediction.
        truth: picks what that is compared with out of the truth.
    """

    evaluator: PerImageEvaluator[Any]
    prediction: Callable[[PredictionT], Any]
    truth: Callable[[TruthT], Any]


class TruthEvaluator(Generic[PredictionT, TruthT]):
    """Scores predictions against truth that is looked up by image id.

    Between processes it travels without the truth: what is merged are the counts of images.

    Args:
        scorers: by the kind of score.
        truth: of an image id.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer[PredictionT, TruthT]],
        truth: Callable[[int], TruthT],
    ) -> None:
        self.evaluators = {kind: scorer.evaluator for kind, scorer in scorers.items()}
        self._scorers: Mapping[str, Scorer[PredictionT, TruthT]] = scorers
        self._truth = truth

    def __getstate__(self) -> dict[str, Any]:
        return {"evaluators": self.evaluators}

    def reset(self) -> None:
        """Forget all predictions."""
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def update(self, image_ids: Sequence[int], predictions: Sequence[PredictionT]) -> None:
        """Add some images; one that was added before is passed over.

        Raises:
            ValueError: an image cannot be scored; the message names it.
        """
        for image_id, prediction in zip(image_ids, predictions, strict=True):
            truth = self._truth(image_id)
            for scorer in self._scorers.values():
                scorer.evaluator.update(
                    [image_id], [scorer.prediction(prediction)], [scorer.truth(truth)]
                )

    def merge(self, other: Self) -> None:
        """Add what ``other`` collected; images that both have count once.

        Raises:
            ValueError: ``other`` scores otherwise.
        """
        if self.evaluators.keys() != other.evaluators.keys():
            raise ValueError(
                f"only evaluators of the same kinds merge: {list(self.evaluators)} and "
                f"{list(other.evaluators)}"
            )
        for kind, evaluator in self.evaluators.items():
            evaluator.merge(other.evaluators[kind])

    def compute(self) -> dict[str, Any]:
        """The scores by kind, over the images so far."""
        return {kind: evaluator.compute() for kind, evaluator in self.evaluators.items()}
