"""Where the bilinear samples of RoIs fall: feature pixels and weights, bin by bin.

A bin's samples lie on a regular grid, so that pixels and weights of the two axes are independent:
everything is computed for one axis, and the product of two axes gives the samples of a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of K RoIs.

    Args:
        start: ``[K]``, where the first bin begins, in feature pixels.
        bin: ``[K]``, length of a bin.
        count: ``[K]``, samples in a bin; none where the RoI has no length and `adaptive`.
        adaptive: the samples are as many as the bin has pixels, rounded up.
    """

    start: Tensor
    bin: Tensor
    count: Tensor
    adaptive: bool

    def __getitem__(self, part: slice | Tensor) -> Axis:
        """Some of the RoIs."""
        return Axis(self.start[part], self.bin[part], self.count[part], self.adaptive)

    @classmethod
    def of(cls, low: Tensor, high: Tensor, bins: int, sampling_ratio: int, aligned: bool) -> Axis:
        """From RoI borders ``[K]`` in feature pixels, before the half-pixel shift."""
        shift = 0.5 if aligned else 0.0
        low, high = low - shift, high - shift
        length = high - low
        if not aligned:
            length = length.clamp(min=1)
        size = length / bins
        count = (
            torch.full_like(size, sampling_ratio)
            if sampling_ratio > 0
            else size.ceil().clamp(min=0)
        )
        return cls(low, size, count, sampling_ratio <= 0)

    def slots(self, size: int) -> Tensor:
        """``[K]``: samples of a bin that can touch a map of ``size`` pixels."""
        # Adaptive ones are more than half a pixel apart: of a huge RoI's few lie on the map.
        return self.count.clamp(max=2 * (size + 4)) if self.adaptive else self.count


def taps(axis: Axis, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixels and weights that the samples of each bin touch along one axis.

    Args:
        axis: of K RoIs.
        bins: bins of a RoI.
        size: pixels of the feature map along this axis.

    Returns:
        ``int64 [K, bins, 2 * slots]`` in 0..size-1, and the weights, which are 0 in slots
        without a sample and for samples more than a pixel outside the map.
    """
    slots = int(axis.slots(size).max()) if len(axis.count) else 0
    start, length, count = (v[:, None, None] for v in (axis.start, axis.bin, axis.count))
    steps = torch.arange(bins, device=start.device)[None, :, None]
    begin = start + steps * length
    number = torch.arange(slots, device=start.device)[None, None, :].to(start)
    # Of the samples of a huge RoI only those near the map are looked at: those before it are
    # skipped, and the slots are enough for those on it.
    spacing = length / count.clamp(min=1)
    first = ((-1 - begin) / spacing - 0.5).floor().nan_to_num(0, 0, 0) - 1
    skip = (count > slots) & (spacing > 0)
    number = number + torch.where(skip, first.clamp(min=0), 0)
    position = begin + (number + 0.5) * length / count.clamp(min=1)
    inside = (number < count) & (position >= -1) & (position <= size)
    # The borders of a RoI near the largest number have no finite distance.
    position = torch.where(inside, position, 0).clamp(min=0, max=size - 1)
    low = position.floor()
    upper = position - low
    weights = torch.stack([1 - upper, upper], dim=-1) * (inside / count.clamp(min=1))[..., None]
    low = low.long()
    pixels = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=-1)
    return pixels.flatten(2), weights.flatten(2)
