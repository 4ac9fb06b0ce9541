"""Any backbone of the timm library by its name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from instseg.models.backbones.base import Backbone, check_same_shapes


class TimmBackbone(Backbone):
    """Feature maps of a timm network (``features_only``).

    Args:
        model: timm's name, such as "tf_efficientnet_lite0" or "convnext_tiny".
        norm: "frozen" keeps every batch norm on its running figures; "live" trains them.
        strides: which maps to return, by their stride, rising.
        in_channels: channels of the images.
        pretrained: download timm's own weights.

    Raises:
        ImportError: timm is not installed (``pip install instseg[timm]``).
        ValueError: timm does not know ``model``, or the model has no map of a wanted stride.
    """

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
        timm = _import_timm(model)
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models(), n=5)
            raise ValueError(
                f"timm has no model {model!r}; near names: {', '.join(near) or 'none'}"
            )
        if list(strides) != sorted(set(strides)):
            raise ValueError(f"strides must rise, got {list(strides)}")
        options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
        # Built once to learn its strides: timm tells them only of an instance.
        reductions = timm.create_model(model, **options).feature_info.reduction()
        if missing := [s for s in strides if s not in reductions]:
            raise ValueError(f"{model} has maps of strides {reductions}, none of {missing}")
        options["out_indices"] = tuple(reductions.index(s) for s in strides)
        self.body = timm.create_model(model, pretrained=pretrained, **options)
        self.channels = self.body.feature_info.channels()
        self.strides = list(strides)
        self._model, self._options = model, options
        if norm == "frozen":
            self.freeze_batch_norm()

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in the names of timm's classification network.

        What no feature map needs, such as the classifier, has to fit too, and is left aside.
        """
        timm = _import_timm(self._model)
        classes: dict[str, int] = {}
        layer = timm.get_pretrained_cfg(self._model).classifier
        weight = state_dict.get(f"{layer}.weight") if isinstance(layer, str) else None
        if weight is not None:  # the file may be for other classes than ImageNet's
            classes["num_classes"] = len(weight)
        classifier = timm.create_model(self._model, in_chans=self._options["in_chans"], **classes)
        check_same_shapes(classifier.state_dict(), state_dict, f"timm's {self._model}")
        # Timm itself carries the weights over to the names that a feature extractor has.
        overlay = {"state_dict": dict(state_dict), **classes}
        body = timm.create_model(
            self._model, pretrained=True, pretrained_cfg_overlay=overlay, **self._options
        )
        self.body.load_state_dict(body.state_dict())

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` to one map for each of `strides`."""
        return list(self.body(x))


def _import_timm(model: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"the backbone {model!r} needs timm: pip install 'instseg[timm]'"
        ) from error
    return timm
