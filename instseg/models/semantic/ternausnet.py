"""TernausNet (Iglovikov and Shvets, 2018): U-Net on a VGG-11 with ImageNet weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from instseg.models.backbones.unet import init_he
from instseg.models.backbones.vgg import VGG
from instseg.models.layers import conv_block
from instseg.models.semantic.network import EncoderDecoder


class TernausNetDecoder(nn.Module):
    """The decoder of figure 1.

    The pooled last map goes through a "center" block, a 3x3 convolution and a transposed one that
    doubles the size; each of the next four blocks has the encoder's map joined before it, and the
    last is a convolution at the image's size.

    A transposed convolution leaves half the channels of the map that is joined next.

    Args:
        in_channels: channels of VGG's six maps, of strides 1 to 32.

    Attributes:
        channels: channels of the result, half of those of the finest map.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        coarse_first = list(in_channels)[::-1]
        self.channels = in_channels[0] // 2
        self.blocks = nn.ModuleList()
        below = 0
        for joined, following in pairwise(coarse_first):
            self.blocks.append(_block(below + joined, joined, following // 2))
            below = following // 2
        self.last = conv_block(below + in_channels[0], self.channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """VGG's maps, finest first, to ``[B, channels, H, W]``."""
        x = self.blocks[0](maps[-1])
        for block, skip in zip(self.blocks[1:], maps[-2:0:-1], strict=True):
            x = block(torch.cat([x, skip], dim=1))
        out: Tensor = self.last(torch.cat([x, maps[0]], dim=1))
        return out


def _block(in_channels: int, middle_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution and a 3x3 transposed one of stride 2, each with ReLU."""
    up = nn.ConvTranspose2d(middle_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    # An output pixel has 1, 2 or 4 of the nine taps, by its row and column: 9 / 4 in the mean.
    nn.init.normal_(up.weight, std=math.sqrt(2 / (middle_channels * 9 / 4)))
    assert up.bias is not None
    nn.init.zeros_(up.bias)
    return conv_block(in_channels, middle_channels, 3).extend([up, nn.ReLU(inplace=True)])


def ternausnet(
    num_outputs: int = 1, in_channels: int = 3, *, width: int = 64, freeze_at: int = 0
) -> EncoderDecoder:
    """TernausNet: VGG-11 without batch norm, `TernausNetDecoder`, logits by a 1x1 convolution.

    Its ImageNet weights, torchvision's ``vgg11``, load through ``encoder.load_classifier``.

    Args:
        num_outputs: maps of logits; one in the paper, for a sigmoid.
        in_channels: channels of the images; 3 for ImageNet weights.
        width: channels of the finest map; 64 in the paper.
        freeze_at: see `VGG`.

    Raises:
        ValueError: see `VGG`.
    """
    encoder = VGG(11, width=width, freeze_at=freeze_at, in_channels=in_channels)
    decoder = TernausNetDecoder(encoder.channels)
    head = init_he(nn.Conv2d(decoder.channels, num_outputs, 1))
    return EncoderDecoder(encoder, decoder, head, in_channels=in_channels, num_outputs=num_outputs)
