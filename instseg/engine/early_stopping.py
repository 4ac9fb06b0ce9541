"""When a training that no longer improves ends: a pure function of its scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from instseg.engine.checkpoint import Best


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a training after some evaluations in a row without improvement.

    An improvement is a score of more than ``min_delta`` above the last improvement. That one, the
    *mark*, is all the state there is; with a ``min_delta`` of 0 it is the best score.

    Args:
        patience: evaluations.
        min_delta: in units of the score.

    Raises:
        ValueError: a value is out of range.
    """

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta must be finite and not negative, got {self.min_delta}")

    def mark(self, mark: Best | None, score: Best) -> Best | None:
        """The mark after an evaluation.

        Args:
            mark: the one before, None if there was none yet.
            score: of this evaluation; one that is NaN or infinite is no improvement.
        """
        if not math.isfinite(score.value):
            return mark
        return score if mark is None or score.value > mark.value + self.min_delta else mark

    def is_over(self, mark: Best | None, *, epoch: int, eval_every: int) -> bool:
        """Whether the training ends.

        Args:
            mark: the present one.
            epoch: epochs closed.
            eval_every: epochs between evaluations.
        """
        since = 0 if mark is None else mark.epoch
        return epoch // eval_every - since // eval_every >= self.patience
