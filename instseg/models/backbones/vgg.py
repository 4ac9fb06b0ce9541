"""VGG (Simonyan and Zisserman, 2015), and the VGG-16 of SSD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from instseg.models.backbones.base import Backbone, check_same_shapes

# Convolutions of each stage (the paper's configurations A, B, D, E).
_CONVS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(Backbone):
    """The last map of each of the five stages, and the last one pooled: strides 1 to 32.

    Args:
        depth: 11, 13, 16 or 19.
        batch_norm: batch norm after each convolution.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        freeze_at: this many stages, from the first, are not trained.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown ``depth`` or ``freeze_at``.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        *,
        batch_norm: bool = False,
        width: int = 64,
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in _CONVS:
            raise ValueError(f"depth must be one of {sorted(_CONVS)}, got {depth}")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at must be in 0..5, got {freeze_at}")
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        plan: list[str | int] = []
        for channels, convs in zip(widths, _CONVS[depth], strict=True):
            plan += [channels] * convs + ["M"]
        self.features = make_layers(plan, batch_norm=batch_norm)
        if in_channels != 3:
            self.features[0] = nn.Conv2d(in_channels, width, 3, padding=1)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                _zero_bias(layer)
        self.depth = depth
        self.in_channels = in_channels
        self.channels = [*widths, widths[-1]]
        self.strides = [1, 2, 4, 8, 16, 32]
        self._pools = [i for i, m in enumerate(self.features) if isinstance(m, nn.MaxPool2d)]
        self.freeze(self.features[: [0, *self._pools][freeze_at]])

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, in_channels, H, W]``, sides at least 32, to maps of strides 1, 2, 4, 8, 16, 32."""
        maps = []
        for i, layer in enumerate(self.features):
            if i in self._pools:
                maps.append(x)
            x = layer(x)
        return [*maps, x]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in torchvision's names; the classifier is left aside."""
        given = {k: v for k, v in state_dict.items() if not k.startswith("classifier.")}
        own = {k: v for k, v in self.state_dict().items() if k.startswith("features.")}
        check_same_shapes(own, given, f"a VGG-{self.depth}")
        self.load_state_dict(given, strict=False)


class SSDVGG(VGG):
    """VGG-16 as SSD has it (Liu et al., 2016, section 3): conv4_3 and fc7, strides 8 and 16.

    The third pool rounds sizes up (300 pixels give 38 at stride 8), the fifth keeps the size, and
    fc6 and fc7 are convolutions, fc6 with dilation 6.

    Args:
        batch_norm: batch norm after each convolution of the five stages; the paper has none.
        width: channels of the first stage, 64 in the paper.
        freeze_at: this many stages, from the first, are not trained.
    """

    def __init__(self, *, batch_norm: bool = False, width: int = 64, freeze_at: int = 0) -> None:
        super().__init__(16, batch_norm=batch_norm, width=width, freeze_at=freeze_at)
        self.features[self._pools[2]] = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.features[self._pools[4]] = nn.MaxPool2d(3, stride=1, padding=1)
        self.fc6 = nn.Conv2d(8 * width, 16 * width, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(16 * width, 16 * width, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.xavier_uniform_(layer.weight)
            _zero_bias(layer)
        self.channels = [8 * width, 16 * width]
        self.strides = [8, 16]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to ``[B, 512, H / 8, W / 8]`` and ``[B, 1024, H / 16, W / 16]``."""
        maps = super().forward(x)
        return [maps[3], F.relu(self.fc7(F.relu(self.fc6(maps[5]))))]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `VGG.load_classifier`; fc6 and fc7 are subsampled from the classifier's (section 3).

        They keep their initialisation where the file has no ``classifier.`` or, as torchvision's
        ``IMAGENET1K_FEATURES``, fills it with NaN.
        """
        super().load_classifier(state_dict)
        fc6, fc7 = state_dict.get("classifier.0.weight"), state_dict.get("classifier.3.weight")
        if fc6 is None or fc7 is None or not (fc6.isfinite().all() and fc7.isfinite().all()):
            return
        every = len(fc6) // self.fc6.out_channels
        weights = {
            "fc6.weight": fc6.unflatten(1, (-1, 7, 7))[::every, :, ::3, ::3],
            "fc6.bias": state_dict["classifier.0.bias"][::every],
            "fc7.weight": fc7[::every, ::every, None, None],
            "fc7.bias": state_dict["classifier.3.bias"][::every],
        }
        own = {k: v for k, v in self.state_dict().items() if k in weights}
        check_same_shapes(own, weights, "SSD's VGG-16, by their classifier")
        self.load_state_dict(weights, strict=False)


def _zero_bias(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
