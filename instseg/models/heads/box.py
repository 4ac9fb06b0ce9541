"""Bodies of the box head, and its two outputs.

The fully connected layers keep PyTorch's initialisation, as torchvision's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block


class FCBoxBody(nn.Module):
    """Two fully connected layers on the pooled map (Lin et al., FPN, 2017, section 4.2).

    Args:
        in_channels: of the pooled map.
        pooled_size: its side.
        channels: width of both layers.
    """

    def __init__(self, in_channels: int, pooled_size: int, channels: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels * pooled_size**2, channels)
        self.fc7 = nn.Linear(channels, channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``[R, in_channels, S, S]`` to ``[R, channels]``."""
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class ConvFCBoxBody(nn.Module):
    """Convolutions and one fully connected layer (Wu and He, Group Normalization, 2018).

    Args:
        in_channels: of the pooled map.
        pooled_size: its side.
        conv_channels: width of each convolution.
        channels: width of the fully connected layer.
        norm: normalisation of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        pooled_size: int,
        conv_channels: Sequence[int] = (256, 256, 256, 256),
        channels: int = 1024,
        *,
        norm: Norm | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        widths = [in_channels, *conv_channels]
        self.convs = nn.Sequential(*(conv_block(a, b, 3, norm=norm) for a, b in pairwise(widths)))
        self.fc = nn.Linear(widths[-1] * pooled_size**2, channels)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``[R, in_channels, S, S]`` to ``[R, channels]``."""
        return F.relu(self.fc(self.convs(x).flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits and a box for each class; the background is column 0.

    Args:
        in_channels: width of the body's output.
        num_classes: C, without the background.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, (num_classes + 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, in_channels]`` to logits ``[R, C + 1]`` and offsets ``[R, C + 1, 4]``."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))
