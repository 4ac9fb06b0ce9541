"""What a training does about a loss or a gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

MAX_OVERFLOWS = 24
"""fp16 steps in a row that overflow before training stops: the loss scale has by then fallen from
2^16 to 2^-8, so that its size is not the reason."""

OnNonFinite = Literal["stop", "skip", "lower_scale"]

Action = Literal["take", "skip", "lower_scale", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What to do with one step.

    Args:
        action: "take" it; "skip" it, weights, average and loss scale stay as they are;
            "lower_scale": `torch.amp.GradScaler` leaves it out and halves the loss scale; "stop".
        problem: what is not finite, "" if the step is to be taken.
        is_fault: whether it deserves a black box; an overflow that the loss scale is there for
            does not.
    """

    action: Action
    problem: str = ""
    is_fault: bool = False


class NonFinitePolicy:
    """Judges each step by its losses and the norm of its gradient.

    In fp16 training the loss is multiplied by a scale that is as large as the half type allows,
    and that is found by trying: finite losses with a gradient that overflows lower the scale,
    whatever the policy, and are a fault only after `MAX_OVERFLOWS` in a row. Everything else that
    is not finite is a fault:

    - "stop": ends the training.
    - "skip": the step is not taken; ``patience`` of them in a row end the training.
    - "lower_scale": for fp16, as a plain loop with `torch.amp.GradScaler` does: the step is not
      taken and the scale is halved for a loss as for a gradient; `MAX_OVERFLOWS` in a row end
      the training.

    Args:
        kind: as above.
        patience: steps in a row that "skip" leaves out before it stops, at least 1.
        scaled: whether the loss is scaled, which is so with fp16 alone.

    Raises:
        ValueError: "lower_scale" without a loss scale, or a patience below 1.
    """

    def __init__(
        self, kind: OnNonFinite = "stop", *, patience: int = 10, scaled: bool = False
    ) -> None:
        if kind == "lower_scale" and not scaled:
            raise ValueError(
                "on_nonfinite 'lower_scale' needs amp 'fp16': bf16 and float32 have no loss scale; "
                "use 'stop' or 'skip'"
            )
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.kind = kind
        self.patience = patience
        self.scaled = scaled
        self.skipped = 0
        self.overflows = 0

    def judge(self, losses: Iterable[Mapping[str, float]], norm: float) -> Verdict:
        """The verdict on the next step.

        Args:
            losses: of every micro-batch of the step (of every process: all must come to the same
                verdict), each loss's value.
            norm: 2-norm of the whole gradient, the loss scale taken out.
        """
        losses = list(losses)
        problem = _problem(losses, norm)
        if problem is None:
            self.skipped = self.overflows = 0
            return Verdict("take")
        only_gradient = all(math.isfinite(v) for parts in losses for v in parts.values())
        if self.scaled and (only_gradient or self.kind == "lower_scale"):
            return self._overflow(problem, is_fault=not only_gradient)
        if self.kind != "skip":
            return Verdict("stop", problem, is_fault=True)
        self.skipped += 1
        if self.skipped >= self.patience:
            return Verdict("stop", f"{problem}; {_in_a_row(self.skipped)}", is_fault=True)
        return Verdict("skip", problem, is_fault=True)

    def _overflow(self, problem: str, *, is_fault: bool) -> Verdict:
        self.overflows += 1
        if self.overflows >= MAX_OVERFLOWS:
            text = f"{problem}; fp16 overflowed in {self.overflows} steps in a row"
            return Verdict("stop", text, is_fault=True)
        return Verdict("lower_scale", problem, is_fault)


def _problem(losses: Iterable[Mapping[str, float]], norm: float) -> str | None:
    """The losses of the first micro-batch that has bad ones, or else the norm."""
    for parts in losses:
        bad = [f"{name} is {value}" for name, value in parts.items() if not math.isfinite(value)]
        if bad:
            return ", ".join(bad)
    return None if math.isfinite(norm) else f"the gradient's norm is {norm}"


def _in_a_row(count: int) -> str:
    return "the only step allowed to fail" if count == 1 else f"{count} steps in a row"
