"""GoogLeNet (Szegedy et al., 2015) as torchvision builds it, cut for DetectNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torchvision.models.googlenet import GoogLeNet as TorchvisionGoogLeNet

from instseg.models.backbones.base import Backbone, check_same_shapes

# In the order of the forward pass. The fourth pooling is not among them: DetectNet leaves it out,
# so that inception 5a and 5b run at stride 16.
_LAYERS = (
    *("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),
    *("inception3a", "inception3b", "maxpool3"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    *("inception5a", "inception5b"),
)
_LEFT_ASIDE = ("fc.", "aux1.", "aux2.")


class GoogLeNet(Backbone):
    """One map of stride 16 and 1024 channels.

    Torchvision's weights expect images scaled to -1..1: mean and deviation 0.5 in `Preprocess`.

    Args:
        norm: "frozen" keeps every batch norm on its running figures; "live" trains them.

    Raises:
        ValueError: another ``norm``.
    """

    def __init__(self, *, norm: Literal["frozen", "live"] = "live") -> None:
        super().__init__()
        if norm not in ("frozen", "live"):
            raise ValueError(f"norm must be 'frozen' or 'live', got {norm!r}")
        body = TorchvisionGoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
        for name in _LAYERS:
            self.add_module(name, getattr(body, name))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.channels = [1024]
        self.strides = [16]
        if norm == "frozen":
            self.freeze_batch_norm()

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to one map of stride 16."""
        for name in _LAYERS:
            x = getattr(self, name)(x)
        return [x]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in torchvision's names; the classifiers are left aside."""
        given = {k: v for k, v in state_dict.items() if not k.startswith(_LEFT_ASIDE)}
        check_same_shapes(self.state_dict(), given, "GoogLeNet")
        self.load_state_dict(given, strict=False)
