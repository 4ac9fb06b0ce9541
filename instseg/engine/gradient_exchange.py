"""How the processes of a group come to the same gradient and the same running statistics."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from instseg.engine.distributed import broadcast_state, rank_and_size
from instseg.engine.protocols import Batch

# `average_buffers` keeps them equal; newer torch gives the option another name.
_ARGUMENTS = signature(DistributedDataParallel).parameters
_LEAVE_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers": False
}


class GradientExchange:
    """Adds up gradients over the processes; with one process, nothing at all.

    As a rule `DistributedDataParallel` does it while the last backward pass of a step is still
    running. It waits for every process, so in the rare step where one has no image to work on
    (the end of an epoch, unreadable files) gradients are added up afterwards instead. Its static
    graph is not used: it counts the passes of the first step, and steps differ in their number.

    Args:
        model: on its device; its weights become those of process 0.
        overlap: leave it to `DistributedDataParallel`; False adds up after every step, as it must
            be where a backward pass may be repeated.
    """

    def __init__(self, model: nn.Module, *, overlap: bool = True) -> None:
        self.rank, self.size = rank_and_size()
        self._model = model
        self._overlap = overlap and self.size > 1
        self._alone = dist.new_subgroups(group_size=1)[0] if self.size > 1 else None
        self._adding: nn.Module = model
        self.rebuild()

    def rebuild(self) -> None:
        """Start anew, after the set of trainable parameters has changed."""
        if self._overlap:
            wrapper = DistributedDataParallel(
                self._model, gradient_as_bucket_view=True, **_LEAVE_BUFFERS
            )
            # A mean, undone by a factor on the loss, would move fp16's overflows.
            wrapper.register_comm_hook(None, _sum)
            self._adding = wrapper
        elif self.size > 1:
            broadcast_state(self._model)

    def overlaps(self, *, all_work: bool) -> bool:
        """Whether the last backward pass of a step adds up the gradients of all processes."""
        return self._overlap and all_work

    def module(self, *, adds_up: bool) -> nn.Module:
        """What to call for a forward pass whose backward pass ``adds_up`` the gradients, or not.

        Gradients of the passes before the last one are added up in the model itself. (Within
        ``no_sync`` too, a forward pass of `DistributedDataParallel` may wait for all processes.)
        """
        return self._adding if adds_up else self._model

    def missing_passes(
        self, batches: Mapping[int, Batch], work: Sequence[int]
    ) -> list[tuple[int, Batch]]:
        """None: a process makes a pass for each of its batches.

        Args:
            batches: this process's, by their place in the step.
            work: batches of each process.

        Returns:
            Batches with their places in the step.
        """
        return []

    def share_norms(self, *, together: bool) -> None:
        """Let `SyncBatchNorm` wait for the other processes in this step, or not.

        It does at each forward pass, so it must not where processes have different numbers of them.
        """
        for module in self._model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group = None if together else self._alone

    def add_gradients(self) -> None:
        """Add up the gradients of all processes now; one without counts with zero."""
        if self.size == 1:
            return
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _add_up([p.grad for p in parameters if p.grad is not None])

    def average_buffers(self, *, moved: bool, processes: int) -> None:
        """Average the running statistics over the processes that have moved them in this step.

        Args:
            moved: whether this process has.
            processes: how many have.
        """
        if self.size == 1:
            return
        moving = [m for m in self._model.modules() if isinstance(m, _BatchNorm) and m.training]
        figures = [
            buffer
            for module in moving
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        counts = [m.num_batches_tracked for m in moving if m.num_batches_tracked is not None]
        with torch.no_grad():
            if not moved:
                for buffer in figures:
                    buffer.zero_()
            _add_up(figures)
            for buffer in figures:
                buffer /= processes
            if counts:
                most = torch.stack(counts)
                dist.all_reduce(most, dist.ReduceOp.MAX)
                for count, value in zip(counts, most, strict=True):
                    count.copy_(value)


def _sum(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """The hook by which `DistributedDataParallel` adds where it would average."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _add_up(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message for each type."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
