"""The ConvDet layer of SqueezeDet (Wu et al., 2017, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from instseg.models.layers import init_normal


class ConvDet(nn.Module):
    """One 3x3 convolution: 5 + C numbers of each of K anchors at every cell.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        num_anchors: K.
        dropout: share of the features that is dropped in training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, num_anchors: int = 9, *, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Conv2d(in_channels, num_anchors * (5 + num_classes), 3, padding=1)
        # As in the released code: training starts from the anchors themselves.
        init_normal(self.output, 1e-4)
        self.num_classes = num_classes
        self.num_anchors = num_anchors

    def forward(self, feature: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, H * W * K, 5 + C]``.

        Row by row, anchors innermost; the 4 box offsets, the logit of the confidence, then the
        logits of the classes.
        """
        out = self.output(self.dropout(feature)).permute(0, 2, 3, 1)
        return out.reshape(len(feature), -1, 5 + self.num_classes)
