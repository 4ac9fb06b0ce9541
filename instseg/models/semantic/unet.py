"""U-Net (Ronneberger et al., 2015), and U-Net on any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from instseg.models.backbones import Backbone
from instseg.models.backbones.unet import ContractingPath, init_he
from instseg.models.layers import Norm
from instseg.models.semantic.decoders.unet import ExpandingPath, UNetDecoder, Up
from instseg.models.semantic.network import EncoderDecoder

Padding = Literal["valid", "same"]


class UNet(EncoderDecoder):
    """The paper's network, with unpadded ("valid") or padded ("same") convolutions.

    With the defaults it is figure 1: 572 pixels to the logits of the inner 388, 31 million
    parameters, weights from N(0, 2 / N) (section 3). Unpadded, the logits of a tile are those of
    the whole image, if the tiles' offsets are multiples of ``2 ** depth``.

    Args:
        in_channels: channels of the images.
        num_outputs: maps of logits.
        width: channels of the finest map.
        depth: number of poolings.
        padding: "valid" for unpadded convolutions, "same" for padded ones, whose logits have the
            image's size.
        norm: normalisation after each 3x3 convolution; None as in the paper.
        dropout: probability of dropping values at the end of the contracting path, 0.5 in the
            authors' network.
        up: "transposed", the paper's 2x2 up-convolution, or "bilinear", interpolation and a 1x1
            convolution; padded only.
        attention: an `AttentionGate` on each skip map; padded only.

    Raises:
        ValueError: an argument is unknown or out of its range, or does not go with unpadded
            convolutions; see `ContractingPath` and `ExpandingPath`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        width: int = 64,
        depth: int = 4,
        padding: Padding = "valid",
        norm: Norm | None = None,
        dropout: float = 0.0,
        up: Up = "transposed",
        attention: bool = False,
    ) -> None:
        if padding not in get_args(Padding):
            raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}")
        padded = padding == "same"
        encoder = ContractingPath(
            in_channels, width=width, depth=depth, padded=padded, norm=norm, dropout=dropout
        )
        decoder = ExpandingPath(
            encoder.channels, padded=padded, norm=norm, up=up, attention=attention
        )
        head = init_he(nn.Conv2d(width, num_outputs, 1))
        super().__init__(encoder, decoder, head, in_channels=in_channels, num_outputs=num_outputs)
        self.padded = padded
        # The convolutions of a level take 2 of its pixels from every side, on both ways; the
        # coarsest level is met once.
        self.border = 0 if padded else 2 * (2 * sum(encoder.strides) - encoder.strides[-1])

    def valid_size(self, size: int) -> int:
        """Padded, the next multiple of ``2 ** depth``.

        Unpadded, the next side for which every map that is pooled has an even side and at least one
        pixel of logits is left: 188, 204, 220 and so on for a depth of 4.
        """
        if self.padded:
            return super().valid_size(size)
        stride = max(self.encoder.strides)
        # A side s has (s - lost) / stride pixels after the last pooling, of which the coarsest
        # level's convolutions take 4; the way up takes ``lost`` image pixels once more.
        lost = 4 * (stride - 1)
        least = lost // stride + 1 + 4
        return stride * max(-(-(size - lost) // stride), least) + lost


def unet(
    encoder: Backbone,
    num_outputs: int,
    *,
    in_channels: int = 3,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    norm: Norm | None = nn.BatchNorm2d,
    attention: bool = False,
) -> EncoderDecoder:
    """U-Net with any encoder: padded, nearest upsampling, logits by a 3x3 convolution.

    Args:
        encoder: its finest map is best of stride 1 or 2, e.g. ``ResNet(34, strides=(2, 4, 8, 16,
            32))``: what is finer than its maps has to be guessed from them.
        num_outputs: maps of logits.
        in_channels: channels of the images that ``encoder`` takes.
        decoder_channels: channels of the decoder's levels, coarsest first: one for each halving of
            the encoder's largest stride.
        norm: normalisation after the decoder's convolutions.
        attention: an `AttentionGate` on each skip map.

    Raises:
        ValueError: see `UNetDecoder`.
    """
    decoder = UNetDecoder(
        encoder.channels, encoder.strides, decoder_channels, norm=norm, attention=attention
    )
    head = nn.Conv2d(decoder_channels[-1], num_outputs, 3, padding=1)
    nn.init.xavier_uniform_(head.weight)
    assert head.bias is not None
    nn.init.zeros_(head.bias)
    return EncoderDecoder(encoder, decoder, head, in_channels=in_channels, num_outputs=num_outputs)
