"""Weights in shards over the processes of a group, for models too large for one GPU (FSDP2).

Each process keeps its part of every parameter, of its gradient and of the optimizer's state. The
parameters of a unit are brought together when it is about to work, and given up again afterwards.

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", stage 3; `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from instseg.engine.distributed import rank_and_size


class Sharding:
    """How a model is sharded, and how it is put together again.

    Parameters stay float32. Halves that `torch.autocast` makes of them are plain tensors, which the
    backward pass holds: with it every process has two bytes of each of the units' weights.

    Args:
        model: on its device, the same in every process; it is sharded in place, so an optimizer
            is to be made afterwards.
        units: names of the modules that are brought together one at a time, each called as a
            whole and in every pass; what lies outside them is there throughout a pass.

    Raises:
        AttributeError: the model has no module of such a name.
    """

    def __init__(self, model: nn.Module, units: Sequence[str]) -> None:
        _, size = rank_and_size()
        device = next(model.parameters()).device
        self._mesh = init_device_mesh(device.type, (size,))
        self._units = tuple(units)
        on_meta = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in model.parameters()
        }
        self._plain = deepcopy(model, on_meta)
        self.shard(model)

    def describe(self) -> str:
        """How many processes hold it and in how many units, in one line."""
        return f"in shards over {self._mesh.size()} processes, {len(self._units) + 1} units"

    def shard(self, model: nn.Module) -> None:
        """Shard in place a model that is built as the first one was."""
        for module in (*map(model.get_submodule, self._units), model):
            sharded = fully_shard(module, mesh=self._mesh)
            # Sums, as each loss is weighed with its share of the step; gloo knows nothing else.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
            # A part that works in one process alone has zeros for gradients in the others.
            if hasattr(sharded, "set_reduce_scatter_unused_params"):  # not in torch 2.11
                sharded.set_reduce_scatter_unused_params(True)

    def whole(self, model: nn.Module) -> nn.Module:
        """An unsharded copy with the same weights, buffers, modes and frozen parts.

        All processes call it. Hooks come from the model as it was before it was sharded.
        """
        # Parameters of the copy lie nowhere yet and take the tensors as they are; buffers do not.
        parameters = {name: whole_tensor(value) for name, value in model.named_parameters()}
        copy = deepcopy(self._plain)
        copy.load_state_dict(parameters, strict=False, assign=True)
        with torch.no_grad():
            for mine, its in zip(copy.buffers(), model.buffers(), strict=True):
                mine.copy_(its)
        for mine, its in zip(copy.parameters(), model.parameters(), strict=True):
            mine.requires_grad_(its.requires_grad)
        for module, original in zip(copy.modules(), model.modules(), strict=True):
            module.training = original.training
            if isinstance(module, nn.SyncBatchNorm) and isinstance(original, nn.SyncBatchNorm):
                module.process_group = original.process_group
        return copy


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, which every process asks for; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Copy ``value`` into ``target``, of which this process may have a part."""
    if isinstance(target, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
