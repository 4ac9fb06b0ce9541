"""One step of a training: the gradient, a look at whether it is finite, and the update."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from instseg.engine.black_box import BlackBox, FaultyStep, MicroBatch
from instseg.engine.buffers import BufferSnapshot
from instseg.engine.distributed import is_writer
from instseg.engine.errors import NonFiniteLossError
from instseg.engine.nonfinite_policy import NonFinitePolicy, Verdict
from instseg.engine.protocols import Batch
from instseg.engine.update import Gradient, Updater

_log = logging.getLogger(__name__)


class Stepper:
    """Takes steps, or leaves them out where losses or gradients are not finite.

    Args:
        updater: computes gradients and applies them.
        policy: what is done about a step that is not finite.
        black_box: gets a record of each such step.
    """

    def __init__(self, updater: Updater, policy: NonFinitePolicy, black_box: BlackBox) -> None:
        self.updater = updater
        self.policy = policy
        self.black_box = black_box

    def take(
        self,
        batches: Mapping[int, Batch],
        counts: Sequence[int],
        *,
        step: int,
        epoch: int,
        lr: float,
    ) -> dict[str, float]:
        """Update the weights; returns each loss's mean over the step's images and ``grad_norm``.

        Args:
            batches: those with images that this process works on, by their place in the step.
            counts: images of each batch of the step, in all processes.
            step: updates made before.
            epoch: epochs closed before.
            lr: of the first parameter group, for the record.

        Raises:
            NonFiniteLossError: the policy is to stop.
        """
        before = BufferSnapshot(self.updater.model)
        gradient = self.updater.compute_gradient(batches, counts, step)
        verdict = self.policy.judge(gradient.losses.values(), gradient.norm)
        if verdict.action == "take":
            self.updater.apply()
            return gradient.means | {"grad_norm": gradient.norm}
        told = ""
        if verdict.is_fault:
            micro_batches = [
                MicroBatch(
                    number,
                    self.updater.seed_of(step, number),
                    batch,
                    counts[number] / sum(counts),
                    gradient.losses[number],
                )
                for number, batch in batches.items()
            ]
            told = self._record(before, verdict, gradient, micro_batches, step, epoch, lr)
        else:
            before.restore()
        where = f"step {step + 1} (epoch {epoch + 1}, lr {lr:g}): {verdict.problem}. {told}"
        if verdict.action == "stop":
            raise NonFiniteLossError(
                f"{where} Lower the learning rate, lengthen the warm-up or set clip_norm; if it is "
                "always the same images, look at their annotations."
            )
        self.updater.discard(lower_scale=verdict.action == "lower_scale")
        if is_writer():
            _log.warning("%s The step was left out.", where.strip())
        return {"grad_norm": gradient.norm}

    def _record(
        self,
        before: BufferSnapshot,
        verdict: Verdict,
        gradient: Gradient,
        micro_batches: list[MicroBatch],
        step: int,
        epoch: int,
        lr: float,
    ) -> str:
        """Write the step down; returns what it showed, in sentences."""
        fault = FaultyStep(
            verdict.problem,
            step + 1,
            epoch + 1,
            lr,
            self.updater.amp,
            self.updater.scaler.get_scale(),
            gradient.norm,
            micro_batches,
        )
        before.restore()
        model = self.updater.whole(self.updater.model)
        return self.black_box.record(model, BufferSnapshot(model), fault)
