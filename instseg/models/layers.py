"""Small blocks that several parts share."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]
"""Makes the normalisation layer for a number of channels, e.g. ``nn.BatchNorm2d``."""


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    norm: Norm | None = None,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution that keeps the size, then normalisation and ReLU where wanted.

    The convolution has a bias when no normalisation follows. Initialised for ReLU (He et al. 2015)
    where one follows, otherwise as Caffe2's "Xavier" (variance 1 / fan in).
    """
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=norm is None
    )
    if activation:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    block = nn.Sequential(conv)
    if norm is not None:
        block.append(norm(out_channels))
    if activation:
        block.append(nn.ReLU(inplace=True))
    return block


def group_norm(channels: int) -> nn.Module:
    """Group norm (Wu and He, 2018) with the usual 32 groups, fewer where they would be of under
    four channels."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 4)), channels)


def init_normal(layer: nn.Module, std: float) -> None:
    """Weights from N(0, std^2), bias 0, for a convolution or linear layer of a head."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
