"""SqueezeNet (Iandola et al., 2016) as torchvision builds it, cut for SqueezeDet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
import torchvision.models.squeezenet as tv_squeezenet
from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes


class SqueezeNet(Backbone):
    """One map of stride 16: the convolutions of SqueezeNet, and two more Fire modules.

    The image is padded before the first convolution, as the "SAME" padding of the published
    SqueezeDet does, so that sides that are multiples of 16 give a map of exactly 1/16; torchvision
    does not pad, and its map is smaller by one.

    Args:
        version: "1_0" or "1_1", the cheaper one that SqueezeDet is built on.
        extra_fires: add Fire 10 and 11, which SqueezeDet trains from nothing (Wu et al., 2017,
            section 3.3).

    Raises:
        ValueError: another ``version``.
    """

    def __init__(self, version: Literal["1_0", "1_1"] = "1_1", *, extra_fires: bool = True) -> None:
        super().__init__()
        if version not in ("1_0", "1_1"):
            raise ValueError(f"version must be '1_0' or '1_1', got {version!r}")
        self.version = version
        self.features = tv_squeezenet.SqueezeNet(version, num_classes=1).features
        self.added = nn.Sequential()
        if extra_fires:
            self.added.append(tv_squeezenet.Fire(512, 96, 384, 384))
            self.added.append(tv_squeezenet.Fire(768, 96, 384, 384))
        self.channels = [768 if extra_fires else 512]
        self.strides = [16]
        # What a convolution of stride 2 lacks to give exactly half: kernel size - stride.
        padding = 1 if version == "1_1" else 5
        self._padding = [padding // 2, padding - padding // 2] * 2

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to one map of stride 16."""
        return [self.added(self.features(F.pad(x, self._padding)))]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in torchvision's names; the classifier is left aside."""
        given = {k: v for k, v in state_dict.items() if not k.startswith("classifier.")}
        own = {k: v for k, v in self.state_dict().items() if k.startswith("features.")}
        check_same_shapes(own, given, f"SqueezeNet {self.version.replace('_', '.')}")
        self.load_state_dict(given, strict=False)
