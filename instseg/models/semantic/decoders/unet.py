"""U-Net decoders: the paper's expanding path, and the one for encoders of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones.unet import double_conv, init_he
from instseg.models.layers import Norm
from instseg.models.semantic.decoders.attention import AttentionGate

Up = Literal["transposed", "bilinear"]

_LARGE = 256
"""Pixels of a map from which on `conv_upsampled` saves more than summing its kernel costs."""


class ExpandingPath(nn.Module):
    """U-Net's own (Ronneberger et al., 2015, section 2).

    A level upsamples the map to half its channels, puts the contracting path's map of that level
    before it, cropped to its size where convolutions are unpadded, and has two 3x3 convolutions.

    Args:
        channels: channels of the contracting path's maps, finest first, each twice the one before.
        padded: convolutions keep the size of a map.
        norm: normalisation after each 3x3 convolution.
        up: "transposed" is the paper's 2x2 "up-convolution"; "bilinear" is interpolation and a 1x1
            convolution.
        attention: an `AttentionGate` on each map of the contracting path.

    Raises:
        ValueError: an unknown ``up``; "bilinear" or ``attention`` with unpadded convolutions.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        padded: bool,
        norm: Norm | None = None,
        up: Up = "transposed",
        attention: bool = False,
    ) -> None:
        super().__init__()
        if up not in get_args(Up):
            raise ValueError(f"up must be one of {', '.join(get_args(Up))}, got {up!r}")
        if not padded and (up == "bilinear" or attention):
            raise ValueError(
                f"up={up!r} and attention={attention} do not go with unpadded convolutions: "
                "interpolation makes up pixels at a tile's edge, so that logits would depend on "
                "how an image is tiled; use padding 'same', or up 'transposed' without attention"
            )
        coarse_first = list(channels)[::-1]
        pairs = list(pairwise(coarse_first))
        self.up = nn.ModuleList(_upsampling(c, d, up) for c, d in pairs)
        self.gates = nn.ModuleList(AttentionGate(d, c) for c, d in pairs if attention)
        self.levels = nn.ModuleList(double_conv(c, d, padded=padded, norm=norm) for c, d in pairs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The contracting path's maps, finest first, to ``[B, channels[0], h, w]``."""
        x = maps[-1]
        for i, (up, level) in enumerate(zip(self.up, self.levels, strict=True)):
            above = up(x)
            skip = _centre(maps[-2 - i], above)
            if self.gates:
                skip = self.gates[i](skip, x)
            x = level(torch.cat([skip, above], dim=1))
        return x


def _upsampling(in_channels: int, out_channels: int, up: Up) -> nn.Module:
    if up == "transposed":
        return init_he(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2))
    # In this order the convolution has a quarter of the pixels, and the result is the same.
    conv = init_he(nn.Conv2d(in_channels, out_channels, 1))
    return nn.Sequential(conv, nn.Upsample(scale_factor=2.0, mode="bilinear"))


def _centre(x: Tensor, like: Tensor) -> Tensor:
    """The middle of a map, of the size of another."""
    (height, width), (h, w) = x.shape[-2:], like.shape[-2:]
    top, left = (height - h) // 2, (width - w) // 2
    return x[..., top : top + h, left : left + w]


class UNetDecoder(nn.Module):
    """A U-Net decoder for any encoder.

    A level upsamples the map twofold (nearest), joins the encoder's map of that stride where there
    is one, and has two 3x3 convolutions. The last level has the image's size.

    Args:
        in_channels: channels of the encoder's maps, finest first.
        in_strides: their strides, powers of two.
        channels: channels of the levels, coarsest first: one level for each halving of the largest
            stride.
        norm: normalisation after each convolution.
        attention: an `AttentionGate` on each map of the encoder but the coarsest.

    Raises:
        ValueError: a stride is no power of two, two are equal, or ``channels`` has not one entry
            for each level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: Sequence[int] = (256, 128, 64, 32, 16),
        *,
        norm: Norm | None = nn.BatchNorm2d,
        attention: bool = False,
    ) -> None:
        super().__init__()
        if len(set(in_strides)) < len(in_strides) or any(s & (s - 1) for s in in_strides):
            raise ValueError(
                f"in_strides must be different powers of two, got {list(in_strides)}: choose other "
                "maps of the encoder"
            )
        top = max(in_strides)
        if len(channels) != top.bit_length() - 1:
            raise ValueError(
                f"channels must have {top.bit_length() - 1} entries to upsample from stride {top} "
                f"to 1, got {list(channels)}"
            )
        skips = dict(zip(in_strides, in_channels, strict=True))
        self.strides = [top >> (i + 1) for i in range(len(channels))]
        self.in_strides = list(in_strides)
        below = [skips[top], *channels]
        self.levels = nn.ModuleList(
            UNetLevel(below[i], skips.get(stride, 0), below[i + 1], norm=norm, attention=attention)
            for i, stride in enumerate(self.strides)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to ``[B, channels[-1], H, W]``."""
        skips = dict(zip(self.in_strides, maps, strict=True))
        x = skips[max(self.in_strides)]
        for level, stride in zip(self.levels, self.strides, strict=True):
            x = level(x, skips.get(stride))
        return x


class UNetLevel(nn.Module):
    """Twofold nearest upsampling, the skip map joined, two 3x3 convolutions with norm and ReLU.

    Args:
        in_channels: channels of the map from below.
        skip_channels: channels of the skip map, 0 for none.
        out_channels: channels of the result.
        norm: normalisation after each convolution.
        attention: an `AttentionGate` on the skip map.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        norm: Norm | None,
        attention: bool,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.gate = (
            AttentionGate(skip_channels, in_channels) if attention and skip_channels else None
        )
        bias = norm is None
        # Named in pairs as torchvision's, which `fold_batch_norm` goes by.
        self.conv1 = nn.Conv2d(in_channels + skip_channels, out_channels, 3, padding=1, bias=bias)
        self.bn1 = nn.Identity() if norm is None else norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = nn.Identity() if norm is None else norm(out_channels)
        init_he(self.conv1)
        init_he(self.conv2)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Upsample and join.

        Args:
            x: ``[B, in_channels, h, w]``.
            skip: ``[B, skip_channels, 2 h, 2 w]``, or None where there are none.

        Returns:
            ``[B, out_channels, 2 h, 2 w]``.
        """
        if self.gate is not None:
            skip = self.gate(skip, x)
        x = F.relu(self.bn1(self._join(x, skip)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def _join(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """``conv1`` of the upsampled map and the skip map one behind the other.

        Neither is built where that is worth it: a convolution of joined maps is the sum of two,
        each with its part of the weights.
        """
        if x.shape[-2] * x.shape[-1] < _LARGE:
            above = F.interpolate(x, scale_factor=2.0, mode="nearest")
            joined: Tensor = self.conv1(above if skip is None else torch.cat([above, skip], dim=1))
            return joined
        weight, bias = self.conv1.weight, self.conv1.bias
        if skip is None:
            return conv_upsampled(x, weight, bias)
        below, beside = weight[:, : self.in_channels], weight[:, self.in_channels :]
        return F.conv2d(skip, beside, bias, padding=1).add_(conv_upsampled(x, below))


def conv_upsampled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Padded 3x3 convolution of a map upsampled twofold (nearest), without building that map.

    Upsampling is a transposed convolution of stride 2 with a 2x2 kernel of ones, so that both are
    one of stride 2 with a 4x4 kernel, in which sums of weights meet each pixel of ``x`` once: equal
    but for rounding, with 4/9 of the multiplications.

    Args:
        x: ``[B, C, h, w]``.
        weight: ``[D, C, 3, 3]`` of a convolution.
        bias: ``[D]`` or None.

    Returns:
        ``[B, D, 2 h, 2 w]``.
    """
    kernel = F.pad(weight.flip(2, 3), (1, 1, 1, 1)).transpose(0, 1)
    kernel = kernel[:, :, 1:] + kernel[:, :, :-1]
    kernel = kernel[:, :, :, 1:] + kernel[:, :, :, :-1]
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
