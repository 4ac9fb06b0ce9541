"""Any backbone of the timm library by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from instseg.models.backbones.base import Backbone


class TimmBackbone(Backbone):
    """Feature maps of a timm network (``features_only``).

    Args:
        model: timm's name, such as "tf_efficientnet_lite0" or "convnext_tiny".
        norm: "frozen" keeps every batch norm on its running figures; "live" trains them.
        strides: which maps to return, by their stride; those the network lacks are an error.
        in_channels: channels of the images.
        pretrained: download timm's own weights.

    Raises:
        ImportError: timm is not installed (``pip install instseg[timm]``).
        ValueError: timm does not know ``model``, or the model has no map of a wanted stride.
    """

    classifier_prefixes = (
        "body.fc.",
        "body.classifier.",
        "body.head.",
        "body.conv_head.",
        "body.bn2.",
    )

    def __init__(
        self,
        model: str,
        *,
        norm: Literal["frozen", "live"] = "frozen",
        strides: Sequence[int] = (4, 8, 16, 32),
        in_channels: int = 3,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"the backbone {model!r} needs timm: pip install 'instseg[timm]'"
            ) from error
        if not timm.is_model(model):
            near = timm.list_models(f"*{model.split('_')[0]}*")[:5]
            raise ValueError(f"timm has no model {model!r}; names like it: {', '.join(near)}")
        options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
        # Built once to learn its strides: timm tells them only of an instance.
        probe: Any = timm.create_model(model, **options)
        reductions = probe.feature_info.reduction()
        if missing := [s for s in strides if s not in reductions]:
            raise ValueError(f"{model} has maps of strides {reductions}, none of {missing}")
        indices = tuple(reductions.index(s) for s in strides)
        body: Any = timm.create_model(model, pretrained=pretrained, out_indices=indices, **options)
        self.channels = body.feature_info.channels()
        self.strides = list(strides)
        self.body = body
        if norm == "frozen":
            self.freeze_batch_norm()

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in timm's own names."""
        super().load_classifier({f"body.{k}": v for k, v in state_dict.items()})

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` to one map for each of `strides`."""
        return list(self.body(x))
