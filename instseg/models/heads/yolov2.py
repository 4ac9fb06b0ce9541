"""The last convolutions of YOLOv2 (Redmon & Farhadi, 2017, section 3, "Training for detection")."""

from __future__ import annotations

from torch import Tensor, nn

from instseg.models.backbones.darknet import darknet_conv
from instseg.models.layers import init_normal


class YOLOv2Predictor(nn.Module):
    """A 3x3 convolution, then 5 + C numbers of each of A anchors at every cell.

    The last layer starts with small weights, so that training starts from the anchors themselves.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        num_anchors: A.
        channels: of the 3x3 convolution.
    """

    def __init__(
        self, in_channels: int, num_classes: int, num_anchors: int, *, channels: int = 1024
    ) -> None:
        super().__init__()
        self.conv = darknet_conv(in_channels, channels, 3)
        self.output = nn.Conv2d(channels, num_anchors * (5 + num_classes), 1)
        init_normal(self.output, 0.01)
        self.num_classes = num_classes
        self.num_anchors = num_anchors

    def forward(self, feature: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, H * W * A, 5 + C]``.

        Row by row, anchors innermost; t_x t_y t_w t_h t_o, then the logits of the classes.
        """
        out = self.output(self.conv(feature)).permute(0, 2, 3, 1)
        return out.reshape(len(feature), -1, 5 + self.num_classes)
