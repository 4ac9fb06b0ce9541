"""SSD's prediction layers: a small convolution on each map for classes, and one for boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from instseg.models.batch_norm import BatchNorm2d
from instseg.models.layers import init_normal


class SSDPredictor(nn.Module):
    """Class logits and box offsets of the default boxes of every map; the background is column 0.

    Args:
        in_channels: of each map.
        num_boxes: default boxes at each position of each map.
        num_classes: C, without the background.
        depthwise: depthwise separable convolutions (SSDlite, Sandler et al., MobileNetV2, 2018,
            section 6.2) instead of 3x3 ones (Liu et al., 2016, section 2.1).

    Attributes:
        class_layers: patterns (of `fnmatch`) of the parameters whose shapes follow the classes.

    Raises:
        ValueError: ``in_channels`` and ``num_boxes`` differ in length.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_boxes: Sequence[int],
        num_classes: int,
        *,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(num_boxes):
            raise ValueError(
                f"in_channels has {len(in_channels)} maps, but num_boxes has {len(num_boxes)}: "
                f"the default boxes need one set for each map"
            )
        layer: Callable[[int, int], nn.Module] = _separable if depthwise else _plain
        self.num_boxes = list(num_boxes)
        self.num_classes = num_classes
        # Of a separable convolution, only the second part, the pointwise one.
        part = "1.*" if depthwise else "*"
        self.class_layers = [f"logits.{i}.{part}" for i in range(len(num_boxes))]
        maps = list(zip(in_channels, num_boxes, strict=True))
        self.logits = nn.ModuleList(layer(c, n * (num_classes + 1)) for c, n in maps)
        self.offsets = nn.ModuleList(layer(c, n * 4) for c, n in maps)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[B, A, C + 1]`` and offsets ``[B, A, 4]`` of the A boxes of all maps.

        The order is that of the default boxes: map by map, row by row, box shapes innermost.
        """
        return (
            _predict(self.logits, features, self.num_classes + 1),
            _predict(self.offsets, features, 4),
        )


def _predict(layers: nn.ModuleList, features: Sequence[Tensor], columns: int) -> Tensor:
    outputs = [layer(x).permute(0, 2, 3, 1) for layer, x in zip(layers, features, strict=True)]
    return torch.cat([o.reshape(len(o), -1, columns) for o in outputs], dim=1)


def _plain(in_channels: int, out_channels: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]
    return conv


def _separable(in_channels: int, out_channels: int) -> nn.Module:
    depthwise = Conv2dNormActivation(
        in_channels,
        in_channels,
        kernel_size=3,
        groups=in_channels,
        norm_layer=partial(BatchNorm2d, eps=1e-3, momentum=0.03),
        activation_layer=nn.ReLU6,
    )
    pointwise = nn.Conv2d(in_channels, out_channels, 1)
    for conv in (depthwise[0], pointwise):
        init_normal(conv, 0.03)
    return nn.Sequential(depthwise, pointwise)
