"""The semantic branch of Panoptic FPN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block, group_norm
from instseg.models.necks.fpn import FPN


class FPNDecoder(nn.Module):
    """A feature pyramid whose levels are brought to one size and summed.

    Kirillov et al., Panoptic Feature Pyramid Networks, 2019, section 3 and figure 3: each level has
    stages of 3x3 convolution, norm, ReLU and twofold bilinear upsampling, as many as it needs to
    reach ``stride``; the level of that stride has one without upsampling.

    Args:
        in_channels: channels of the encoder's maps, finest first.
        in_strides: their strides, powers of two.
        pyramid_channels: channels of the pyramid's maps.
        channels: channels of the stages and of the sum.
        norm: normalisation of the stages; group norm in the paper.
        stride: stride of the sum, 4 in the paper. Finer maps of the encoder are not used.

    Raises:
        ValueError: a stride is no power of two, or all are below ``stride``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        pyramid_channels: int = 256,
        channels: int = 128,
        *,
        norm: Norm | None = group_norm,
        stride: int = 4,
    ) -> None:
        super().__init__()
        if any(s & (s - 1) for s in (*in_strides, stride)):
            raise ValueError(
                f"strides must be powers of two, got {list(in_strides)} to be brought to {stride}"
            )
        self.pyramid = FPN(in_channels, in_strides, pyramid_channels, min_stride=stride)
        self.branches = nn.ModuleList(
            _branch(pyramid_channels, channels, (s // stride).bit_length() - 1, norm)
            for s in self.pyramid.strides[:-1]
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first, to ``[B, channels, H / stride, W / stride]``."""
        levels = self.pyramid(maps)[:-1]  # without the neck's extra level on top
        first, *others = (
            branch(level) for branch, level in zip(self.branches, levels, strict=True)
        )
        for other in others:
            first = first + other
        return first


def _branch(in_channels: int, channels: int, upsamplings: int, norm: Norm | None) -> nn.Sequential:
    branch = nn.Sequential()
    for i in range(max(upsamplings, 1)):
        branch.append(conv_block(channels if i else in_channels, channels, 3, norm=norm))
        if upsamplings:
            branch.append(nn.Upsample(scale_factor=2.0, mode="bilinear"))
    return branch
