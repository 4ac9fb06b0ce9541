"""How the processes of a group come to the gradient of a model that is sharded among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from instseg.engine.distributed import gather
from instseg.engine.gradient_exchange import GradientExchange
from instseg.engine.plain_batch import PlainBatch
from instseg.engine.protocols import Batch


class ShardedExchange(GradientExchange):
    """Leaves gradients to FSDP2, which adds them up in every backward pass and shards the sums.

    Args:
        model: sharded by `instseg.engine.sharding.Sharding`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, overlap=True)

    def rebuild(self) -> None:
        """Nothing: units look at what is trainable whenever they are brought together."""

    def overlaps(self, *, all_work: bool) -> bool:
        """Always: each pass adds up the gradients of all processes."""
        return True

    def module(self, *, adds_up: bool) -> nn.Module:
        """The sharded model; its gradients are kept sharded between the passes of a step too."""
        return self._model

    def missing_passes(
        self, batches: Mapping[int, Batch], work: Sequence[int]
    ) -> list[tuple[int, Batch]]:
        """What this process repeats, with weight 0, to make as many passes as the others.

        Every pass needs all processes, and now and then (the end of an epoch, unreadable files)
        one has fewer batches than the others. It then gets a copy of another one's.
        """
        most = max(work)
        if min(work) == most:
            return []
        spare = None
        if self.rank == work.index(most):
            number = min(batches)
            spare = number, PlainBatch.part_of(batches[number])
        given = next(batch for batch in gather(spare) if batch is not None)
        return [given] * (most - work[self.rank])
