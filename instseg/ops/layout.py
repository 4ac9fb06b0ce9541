"""The two memory layouts of a map ``[B, C, H, W]``."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(value: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side; not said of what is contiguous as well."""
    if value.ndim != 4:
        return False
    last = value.is_contiguous(memory_format=torch.channels_last)
    return last and not value.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    """The layout's name in PyTorch."""
    return torch.channels_last if channels_last else torch.contiguous_format
