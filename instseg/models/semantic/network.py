"""What every semantic network is, and the shape that most of them have: encoder, decoder, head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.backbones import Backbone


class SegmentationNetwork(nn.Module, ABC):
    """A network from images ``[B, in_channels, H, W]`` to logits ``[B, num_outputs, h, w]``.

    Attributes:
        in_channels: channels of the images.
        num_outputs: maps of logits.
        border: image pixels at each side that the logits do not cover: 0 where convolutions are
            padded, 92 in the U-Net of the paper, which sees 572 pixels and labels the inner 388.
        class_layers: patterns (of `fnmatch`) of the parameters that belong to the classes.
    """

    in_channels: int
    num_outputs: int
    border: int = 0
    class_layers: Sequence[str]

    @abstractmethod
    def valid_size(self, size: int) -> int:
        """The least side of at least ``size`` pixels that the network takes as it is."""

    def output_size(self, size: int) -> int:
        """The side of the logits for an image of a valid side ``size``."""
        return size - 2 * self.border

    def covering_size(self, size: int) -> int:
        """The least valid side whose logits cover ``size`` pixels."""
        side = self.valid_size(size + 2 * self.border)
        while self.output_size(side) < size:
            side = self.valid_size(side + 1)
        return side

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits of images with valid sides; no control flow depends on data."""


class EncoderDecoder(SegmentationNetwork):
    """An encoder's maps, a decoder that joins them into one, a head on that.

    Args:
        encoder: images to maps of falling resolution; its largest stride is what the sides of an
            image must be multiples of.
        decoder: the list of maps to one map ``[B, C, h, w]``.
        head: that map to logits of the image's size (less `border`).
        in_channels: channels of the images.
        num_outputs: maps of logits.
    """

    def __init__(
        self,
        encoder: Backbone,
        decoder: nn.Module,
        head: nn.Module,
        *,
        in_channels: int,
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.in_channels = in_channels
        self.num_outputs = num_outputs
        self.class_layers = ["head.*"]

    def valid_size(self, size: int) -> int:
        """The next multiple of the encoder's largest stride."""
        stride = max(self.encoder.strides)
        return -(-size // stride) * stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to logits ``[B, num_outputs, H, W]``."""
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return logits
