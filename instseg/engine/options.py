"""The trainer's plain settings."""

from __future__ import annotations

from dataclasses import dataclass

from instseg.engine.amp import Amp


@dataclass(frozen=True)
class TrainerOptions:
    """How long and how to train; learning rates belong to the optimizer and the schedule.

    Args:
        epochs: passes over the data.
        seed: of the global generators at the start of a training.
        accumulate: batches whose gradients make one step (one update of the weights).
        amp: half type of the forward pass, None for float32.
        clip_norm: limit on the gradient's 2-norm, None for no clipping.
        ema_decay: keep an exponential moving average of the weights with this decay, in [0, 1);
            it is then what is evaluated and stored as best and final. None for no average.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        best_metric: which score decides on the best weights, such as ``segm/AP``; higher is better.
        checkpoint_every: steps between checkpoints; the end of an epoch always makes one.
        log_every: steps between rows of training metrics, which hold means over those steps.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int
    seed: int = 0
    accumulate: int = 1
    amp: Amp | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    eval_every: int = 1
    best_metric: str = "segm/AP"
    checkpoint_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "eval_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
