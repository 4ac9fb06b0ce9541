"""Learning-rate schedules: pure functions of the step, so that resuming needs no state.

Each is called with the number of the update about to be made (from 0) and returns the factor on
the base learning rate. They serve `torch.optim.lr_scheduler.LambdaLR` as they are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass


def linear_warmup(step: int, warmup_steps: int, start_factor: float) -> float:
    """From ``start_factor`` at step 0 in a straight line to 1 at ``warmup_steps``, then 1.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """
    if step >= warmup_steps:
        return 1.0
    return start_factor + (1.0 - start_factor) * step / warmup_steps


@dataclass(frozen=True)
class MultiStep:
    """Linear warm-up, then a factor ``gamma`` at each milestone.

    Args:
        milestones: steps in rising order; from a milestone on the rate is ``gamma`` times lower.
        gamma: the factor, in (0, 1].
        warmup_steps: length of the warm-up; 0 for none.
        warmup_factor: the factor at step 0 of the warm-up, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    milestones: tuple[int, ...]
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_factor)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {self.milestones}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")

    def __call__(self, step: int) -> float:
        """The factor for update number ``step``."""
        decay = self.gamma ** bisect_right(self.milestones, step)
        return decay * linear_warmup(step, self.warmup_steps, self.warmup_factor)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 down to ``final_factor`` at ``total_steps``.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.

    Args:
        total_steps: where the cosine ends, warm-up included; more than ``warmup_steps``.
        final_factor: the factor at ``total_steps`` and after, in [0, 1].
        warmup_steps: length of the warm-up; 0 for none.
        warmup_factor: the factor at step 0 of the warm-up, in [0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    total_steps: int
    final_factor: float = 0.0
    warmup_steps: int = 0
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps, self.warmup_factor)
        if self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"a cosine over {self.total_steps} steps leaves nothing after "
                f"{self.warmup_steps} steps of warm-up"
            )
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"final_factor must be in [0, 1], got {self.final_factor}")

    def __call__(self, step: int) -> float:
        """The factor for update number ``step``."""
        if step < self.warmup_steps:
            return linear_warmup(step, self.warmup_steps, self.warmup_factor)
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (
            1.0 + math.cos(math.pi * done)
        )


def _check_warmup(steps: int, factor: float) -> None:
    if steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {steps}")
    if not 0 <= factor <= 1:
        raise ValueError(f"warmup_factor must be in [0, 1], got {factor}")
