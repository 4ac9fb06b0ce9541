"""The moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from instseg.engine.sharding import Sharding, own_part


def make_average(model: nn.Module, decay: float, sharding: Sharding | None = None) -> AveragedModel:
    """An exponential moving average of parameters and buffers, sharded as the model is.

    Args:
        model: the first update makes the average equal to it.
        decay: what remains of the average at each update, in [0, 1).
        sharding: has sharded ``model``; None where it is whole.
    """
    average = get_ema_multi_avg_fn(decay)

    def of_own_parts(
        averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int
    ) -> None:
        average([own_part(t) for t in averaged], [own_part(t) for t in current], count)

    # The average copies the module it is given: one of a sharded model is put into its place.
    given = model if sharding is None else nn.Module()
    averaged = AveragedModel(given, multi_avg_fn=of_own_parts, use_buffers=True)
    if sharding is not None:
        averaged.module = sharding.whole(model)
        sharding.shard(averaged.module)
    return averaged
