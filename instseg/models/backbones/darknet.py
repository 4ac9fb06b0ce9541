"""Darknet-19 and the network of YOLOv1 (Redmon et al., 2016 and 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes

# (channels, kernel size, stride) of each convolution; None is 2x2 max pooling.
_Plan = Sequence[tuple[int, int, int] | None]

# Table 6 of YOLOv2 up to the last 512 channels, and on.
_DARKNET19_FINE: _Plan = (
    (32, 3, 1),
    None,
    (64, 3, 1),
    None,
    *((128, 3, 1), (64, 1, 1), (128, 3, 1)),
    None,
    *((256, 3, 1), (128, 1, 1), (256, 3, 1)),
    None,
    *((512, 3, 1), (256, 1, 1), (512, 3, 1), (256, 1, 1), (512, 3, 1)),
)
_DARKNET19_COARSE: _Plan = (
    None,
    *((1024, 3, 1), (512, 1, 1), (1024, 3, 1), (512, 1, 1), (1024, 3, 1)),
)

# Figure 3 of YOLOv1: the 20 convolutions trained for classification, and the 4 added to them.
_YOLOV1_FEATURES: _Plan = (
    (64, 7, 2),
    None,
    (192, 3, 1),
    None,
    *((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)),
    None,
    *((256, 1, 1), (512, 3, 1)) * 4,
    *((512, 1, 1), (1024, 3, 1)),
    None,
    *((512, 1, 1), (1024, 3, 1)) * 2,
)
_YOLOV1_ADDED: _Plan = ((1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1))


def darknet_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, leaky ReLU with slope 0.1: the block of every Darknet."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1, inplace=True))


class Darknet19(Backbone):
    """The convolutions of Darknet-19 (YOLOv2, section 3, table 6), without the classifier.

    Args:
        width: factor of every number of channels; 1 is the published network.

    Raises:
        ValueError: ``width`` is not positive.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        self.fine, channels = _stack(3, _DARKNET19_FINE, width)
        self.coarse, last = _stack(channels, _DARKNET19_COARSE, width)
        self.channels = [channels, last]
        self.strides = [16, 32]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to the maps of strides 16 (for the passthrough) and 32."""
        fine = self.fine(x)
        return [fine, self.coarse(fine)]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`.

        Neither torchvision nor timm has this network: the names are those of this class, with the
        last layer, ``classifier.*``, left aside.
        """
        given = {k: v for k, v in state_dict.items() if not k.startswith("classifier.")}
        check_same_shapes(self.state_dict(), given, "Darknet-19")
        self.load_state_dict(given, strict=False)


class YOLOv1Backbone(Backbone):
    """The 24 convolutions of YOLOv1 (section 2.1, figure 3).

    With batch norm after each, as in the released ``yolov1.cfg``; the paper trains without.

    Args:
        width: factor of every number of channels; 1 is the published network.

    Raises:
        ValueError: ``width`` is not positive.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        self.features, channels = _stack(3, _YOLOV1_FEATURES, width)
        self.added, last = _stack(channels, _YOLOV1_ADDED, width)
        self.channels = [last]
        self.strides = [64]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to one map of stride 64."""
        return [self.added(self.features(x))]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, for the first 20 convolutions (section 2.2).

        Neither torchvision nor timm has this network: the names are ``features.*`` of this class,
        with the last layer, ``classifier.*``, left aside.
        """
        given = {k: v for k, v in state_dict.items() if not k.startswith("classifier.")}
        own = {k: v for k, v in self.state_dict().items() if k.startswith("features.")}
        check_same_shapes(own, given, "the classifier of YOLOv1")
        self.load_state_dict(given, strict=False)


def _stack(in_channels: int, plan: _Plan, width: float) -> tuple[nn.Sequential, int]:
    """The layers of ``plan``, and the channels of their output."""
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    layers: list[nn.Module] = []
    for step in plan:
        if step is None:
            layers.append(nn.MaxPool2d(2))
            continue
        channels, kernel_size, stride = step
        channels = max(1, round(channels * width))
        layers.append(darknet_conv(in_channels, channels, kernel_size, stride=stride))
        in_channels = channels
    return nn.Sequential(*layers), in_channels
