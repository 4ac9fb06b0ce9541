"""The fully convolutional mask head (He et al., Mask R-CNN, 2017, figure 4, right)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block


class FCNMaskBody(nn.Sequential):
    """3x3 convolutions with ReLU on the pooled map.

    Args:
        in_channels: of the pooled map.
        channels: width of each convolution.
        norm: normalisation; None as in the paper.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (256, 256, 256, 256),
        *,
        norm: Norm | None = None,
    ) -> None:
        widths = [in_channels, *channels]
        super().__init__(*(conv_block(a, b, 3, norm=norm) for a, b in pairwise(widths)))
        self.channels = widths[-1]


class MaskPredictor(nn.Module):
    """Transposed convolution to twice the size, then one mask for each class.

    Args:
        in_channels: width of the body's output.
        num_classes: C, without the background.
        channels: width between the two layers.

    The last layer has C + 1 channels, channel 0 for the background, which is never trained: that
    keeps the shapes of torchvision's checkpoints.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes + 1, 1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(_bias(self.upsample))
        # As torchvision's; docs/results.md has what detectron2's, N(0, 0.001^2), gave.
        nn.init.kaiming_normal_(self.logits.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(_bias(self.logits))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[R, 2S, 2S]`` of each RoI's own class.

        Args:
            x: ``[R, in_channels, S, S]``.
            labels: ``int64 [R]``, class indices from 0.
        """
        hidden = F.relu(self.upsample(x))
        # Only the wanted class's channel: one matrix product for each RoI, not C + 1 maps.
        weight = self.logits.weight[labels + 1, :, 0, 0]
        bias = _bias(self.logits)[labels + 1]
        maps = torch.einsum("rc,rchw->rhw", weight.to(hidden.dtype), hidden)
        return maps + bias[:, None, None]


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
