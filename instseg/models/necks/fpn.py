"""Feature Pyramid Network (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block

Extra = Literal["pool", "conv_c5", "conv_p5"]


class FPN(nn.Module):
    """Top-down pathway with lateral connections (section 3), plus coarser levels on top of it.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        in_strides: their strides.
        channels: channels of every output map.
        norm: normalisation after each convolution; None as in the paper.
        extra: the levels on top. "pool" is one, every second pixel of the last (for the RPN,
            section 4.1). "conv_c5" and "conv_p5" are RetinaNet's two (Lin et al., Focal Loss, 2017,
            section 4): P6 by a 3x3 convolution of stride 2, P7 by another after a ReLU. P6 is made
            from the backbone's last map as in that paper, or from this network's last map.
        min_stride: maps of the backbone with a smaller stride are not used (RetinaNet: 8).

    Attributes:
        strides: strides of the output maps, the extra levels last.

    Raises:
        ValueError: an unknown ``extra``, or no map of ``min_stride``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: int = 256,
        *,
        norm: Norm | None = None,
        extra: Extra = "pool",
        min_stride: int = 1,
    ) -> None:
        super().__init__()
        if extra not in get_args(Extra):
            raise ValueError(f"extra must be one of {', '.join(get_args(Extra))}, got {extra!r}")
        self.skipped = sum(stride < min_stride for stride in in_strides)
        if self.skipped == len(in_strides):
            raise ValueError(
                f"min_stride {min_stride} leaves no map: the strides are {list(in_strides)}"
            )
        used = in_channels[self.skipped :]
        self.lateral = nn.ModuleList(
            conv_block(c, channels, 1, norm=norm, activation=False) for c in used
        )
        self.output = nn.ModuleList(
            conv_block(channels, channels, 3, norm=norm, activation=False) for _ in used
        )
        self.channels = channels
        self.extra = extra
        self.strides = [*in_strides[self.skipped :], in_strides[-1] * 2]
        if extra != "pool":
            self.p6 = _downsampling(used[-1] if extra == "conv_c5" else channels, channels)
            self.p7 = _downsampling(channels, channels)
            self.strides.append(in_strides[-1] * 4)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of falling resolution to one for each of `strides`, all of `channels`."""
        features = features[self.skipped :]
        top = self.lateral[-1](features[-1])
        merged = [top]
        for lateral, feature in zip(self.lateral[-2::-1], features[-2::-1], strict=True):
            side = lateral(feature)
            top = side + F.interpolate(top, size=side.shape[-2:], mode="nearest")
            merged.insert(0, top)
        outputs = [conv(m) for conv, m in zip(self.output, merged, strict=True)]
        if self.extra == "pool":
            # By plain subsampling (section 4.1, footnote 2).
            return [*outputs, F.max_pool2d(outputs[-1], kernel_size=1, stride=2)]
        p6 = self.p6(_bordered(features[-1] if self.extra == "conv_c5" else outputs[-1]))
        return [*outputs, p6, self.p7(_bordered(F.relu(p6)))]


def _bordered(x: Tensor) -> Tensor:
    """One pixel of zeros around, for `_downsampling`: half the size then, rounded up.

    The convolution does not pad by itself because, of maps one pixel wide, the gradient of its
    weights is then undefined in bfloat16 on CPUs (seen in torch 2.15).
    """
    return F.pad(x, (1, 1, 1, 1))


def _downsampling(in_channels: int, channels: int) -> nn.Conv2d:
    """3x3, stride 2, initialised as the other convolutions."""
    conv = nn.Conv2d(in_channels, channels, 3, stride=2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
