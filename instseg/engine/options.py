"""The trainer's plain settings."""

from __future__ import annotations

from dataclasses import dataclass

from instseg.engine.amp import Amp
from instseg.engine.nonfinite_policy import OnNonFinite
from instseg.engine.out_of_memory import OnOutOfMemory


@dataclass(frozen=True)
class TrainerOptions:
    """How long and how to train; learning rates belong to the optimizer and the schedule.

    Args:
        epochs: passes over the data.
        seed: of what the model draws (`instseg.engine.rng.micro_batch_seed`); the initial weights
            are the caller's.
        accumulate: batches whose gradients make one step (one update of the weights), in all
            processes together.
        amp: half type of the forward pass, None for float32.
        clip_norm: limit on the gradient's 2-norm, None for no clipping.
        ema_decay: keep an exponential moving average of the weights with this decay, in [0, 1);
            it is then what is evaluated and stored as best and final. None for no average.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        best_metric: which score decides on the best weights, such as ``segm/AP``; higher is better.
        checkpoint_every: steps between checkpoints; the end of an epoch always makes one.
        log_every: steps between rows of training metrics, which hold means over those steps.
        on_nonfinite: what is done about a loss or gradient that is not finite, see
            `instseg.engine.nonfinite_policy.NonFinitePolicy`.
        nonfinite_patience: steps in a row that "skip" leaves out before it stops.
        on_out_of_memory: what is done when a batch does not fit into a GPU's memory, see
            `instseg.engine.out_of_memory.backward_in_parts`.

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
    on_nonfinite: OnNonFinite = "stop"
    nonfinite_patience: int = 10
    on_out_of_memory: OnOutOfMemory = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "eval_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
