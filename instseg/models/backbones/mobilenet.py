"""MobileNetV3-Large (Howard et al., 2019) as torchvision builds it, cut where SSDlite reads it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from instseg.models.backbones.base import Backbone, check_same_shapes
from instseg.models.batch_norm import BatchNorm2d
from instseg.models.layers import init_normal

# Where the layers of each stride begin, 2 to 32, then the last layer, then the end.
_STAGES = (0, 2, 4, 7, 13, 16, 17)
_C4 = _STAGES[4]


class MobileNetV3Large(Backbone):
    """The expansion of the block that goes to stride 32, and the last layer: strides 16 and 32.

    These are the two maps of section 6.3. Weights start from N(0, 0.03^2), as SSDlite's do.

    Args:
        reduced_tail: half the channels from stride 32 on (table 6), as torchvision's SSDlite has;
            ImageNet weights need False.
        freeze_at: this many stages, from the first of six, are not trained.

    Raises:
        ValueError: ``freeze_at`` is not in 0..6.
    """

    def __init__(self, *, reduced_tail: bool = True, freeze_at: int = 0) -> None:
        super().__init__()
        if not 0 <= freeze_at <= 6:
            raise ValueError(f"freeze_at must be in 0..6, got {freeze_at}")
        norm = partial(BatchNorm2d, eps=1e-3, momentum=0.03)
        body = mobilenet_v3_large(weights=None, reduced_tail=reduced_tail, norm_layer=norm)
        self.features = body.features
        for layer in self.features.modules():
            if isinstance(layer, nn.Conv2d):
                init_normal(layer, 0.03)
        self.reduced_tail = reduced_tail
        self.channels = [672, 480 if reduced_tail else 960]
        self.strides = [16, 32]
        self.freeze(self.features[: _STAGES[freeze_at]])

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to ``[B, 672, H / 16, W / 16]`` and ``[B, 480, H / 32, W / 32]``."""
        x = self.features[:_C4](x)
        block = self.features[_C4].block
        expansion = block[0](x)
        return [expansion, self.features[_C4 + 1 :](block[1:](expansion))]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in torchvision's names; the classifier is left aside."""
        given = {k: v for k, v in state_dict.items() if not k.startswith("classifier.")}
        tail = "a reduced tail" if self.reduced_tail else "the full tail"
        check_same_shapes(self.state_dict(), given, f"a MobileNetV3-Large with {tail}")
        self.load_state_dict(given, strict=False)
