"""How the learning rate follows the global batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Rule = Literal["auto", "linear", "sqrt", "none"]


@dataclass(frozen=True)
class LrScaling:
    """The learning rate of a training whose steps take the batches of several replicas.

    The configured rate is that of one replica. With k of them the rate is k times higher for SGD
    (linear rule: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1) and sqrt(k)
    times for Adam (square root rule: Malladi et al. 2022, "On the SDEs and Scaling Rules for
    Adaptive Gradient Algorithms").

    Args:
        lr: the configured rate.
        optimizer: which.
        rule: "auto" takes the optimizer's; "none" leaves the rate as it is.
        replicas: shares of a step that one process each could compute.
        images_per_step: of the whole step.

    Raises:
        ValueError: an unknown rule, or ``replicas`` is less than 1.
    """

    lr: float
    optimizer: Literal["sgd", "adamw"]
    rule: Rule
    replicas: int
    images_per_step: int

    def __post_init__(self) -> None:
        if self.rule not in ("auto", "linear", "sqrt", "none"):
            raise ValueError(f"unknown rule '{self.rule}': choose auto, linear, sqrt or none")
        if self.replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {self.replicas}")

    @property
    def factor(self) -> float:
        """What the configured rate is multiplied with."""
        rule = self._rule
        if rule == "linear":
            return float(self.replicas)
        return math.sqrt(self.replicas) if rule == "sqrt" else 1.0

    @property
    def scaled_lr(self) -> float:
        """The rate of the training."""
        return self.lr * self.factor

    def describe(self) -> str:
        """The rate and how it came about, as in "learning rate 0.02 x 2 (linear rule ...)"."""
        name = "SGD" if self.optimizer == "sgd" else "AdamW"
        replicas = f"{self.replicas} replica{'s' if self.replicas > 1 else ''}"
        step = f"{replicas}, {self.images_per_step} images a step"
        if self._rule == "none":
            return f"learning rate {self.lr:g} (not scaled, {step})"
        rule = "linear" if self._rule == "linear" else "square root"
        return f"learning rate {self.lr:g} x {self.factor:.4g} ({rule} rule for {name}, {step})"

    @property
    def _rule(self) -> Rule:
        if self.rule != "auto":
            return self.rule
        return "linear" if self.optimizer == "sgd" else "sqrt"
