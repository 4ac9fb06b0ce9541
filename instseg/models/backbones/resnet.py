"""ResNet (He et al., 2016) as torchvision builds it, cut into stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torchvision.models.resnet as tv_resnet
from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes

_EXPANSION = {18: 1, 34: 1, 50: 4, 101: 4}
_STRIDES = (2, 4, 8, 16, 32)


class ResNet(Backbone):
    """C2 to C5 of a ResNet, strides 4, 8, 16, 32; also its stem's map of stride 2 where wanted.

    Args:
        depth: 18, 34, 50 or 101. The bottleneck's stride is on its 3x3 convolution (torchvision's
            "v1.5").
        norm: "frozen" keeps every batch norm on its running figures; "live" trains them.
        freeze_at: 0 trains all; 1 freezes the stem; 2 the stem and C2 (the usual choice with
            ImageNet weights), up to 5 for everything.
        strides: which maps to return, rising and up to 32. The one of stride 2 is the stem's after
            its ReLU, 64 channels.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown ``depth``, ``norm``, ``freeze_at`` or ``strides``.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101] = 50,
        *,
        norm: Literal["frozen", "live"] = "frozen",
        freeze_at: int = 2,
        strides: Sequence[int] = (4, 8, 16, 32),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in _EXPANSION:
            raise ValueError(f"depth must be one of {sorted(_EXPANSION)}, got {depth}")
        if norm not in ("frozen", "live"):
            raise ValueError(f"norm must be 'frozen' or 'live', got {norm!r}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at must be in 0..5, got {freeze_at}")
        if list(strides) != [s for s in _STRIDES if s in strides] or strides[-1:] != _STRIDES[-1:]:
            raise ValueError(
                f"strides must rise, be among {list(_STRIDES)} and end with 32, got {list(strides)}"
            )
        body = getattr(tv_resnet, f"resnet{depth}")(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = (
            body.conv1,
            body.bn1,
            body.relu,
            body.maxpool,
        )
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.layer1, self.layer2 = body.layer1, body.layer2
        self.layer3, self.layer4 = body.layer3, body.layer4
        self.depth = depth
        widths = [64, *(c * _EXPANSION[depth] for c in (64, 128, 256, 512))]
        self.channels = [c for c, s in zip(widths, _STRIDES, strict=True) if s in strides]
        self.strides = list(strides)
        self.in_channels = in_channels

        stages: list[list[nn.Module]] = [[self.conv1, self.bn1]]
        stages += [[layer] for layer in (self.layer1, self.layer2, self.layer3, self.layer4)]
        for stage in stages[:freeze_at]:
            self.freeze(stage)
        if norm == "frozen":
            self.freeze_batch_norm()

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, in_channels, H, W]`` to one map for each of `strides`."""
        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return [m for m, stride in zip(maps, _STRIDES, strict=True) if stride in self.strides]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in torchvision's names; the last layer is left aside."""
        given = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
        check_same_shapes(self.state_dict(), given, f"a ResNet-{self.depth}")
        self.load_state_dict(given, strict=False)
