"""Published checkpoints of other projects: their configurations, and how they are converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from instseg.config.build import build_model
from instseg.config.schema import InferenceConfig
from instseg.config.schema_backbone import ResNetConfig
from instseg.config.schema_data import (
    LetterboxConfig,
    ResizeConfig,
    ResizeShortestEdgeConfig,
    ResizeTransformConfig,
)
from instseg.config.schema_model import (
    BoxHeadConfig,
    ConvFcBodyConfig,
    FasterRcnnConfig,
    FcnMaskHeadConfig,
    FpnConfig,
    MaskRcnnConfig,
    RpnConfig,
)
from instseg.config.schema_one_stage import RetinaNetConfig, SsdConfig, YoloxConfig
from instseg.config.trained import check_state_dict
from instseg.engine.errors import CheckpointError
from instseg.models.detection.yolox import VARIANTS
from instseg.models.foreign import torchvision_rcnn, torchvision_retinanet, torchvision_ssd
from instseg.models.foreign.yolox_onnx import load_yolox_onnx

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How a family of torchvision's models is converted.

    Args:
        convert: renames the keys.
        select: keeps some of the classes, by the index that torchvision gives a class.
        count: how many classes converted tensors have, the background among them.
    """

    convert: Callable[[Mapping[str, Tensor], float | None], Tensors]
    select: Callable[[Tensors, Sequence[int]], Tensors]
    count: Callable[[Tensors], int]


def _without_background(
    select: Callable[[Tensors, Sequence[int]], Tensors],
) -> Callable[[Tensors, Sequence[int]], Tensors]:
    return lambda tensors, keep: select(tensors, [k - 1 for k in keep])


_RCNN = Family(
    lambda t, eps: torchvision_rcnn.convert_torchvision_state_dict(t, frozen_eps=eps),
    _without_background(torchvision_rcnn.select_classes),
    lambda t: t["box_head.predictor.cls_score.bias"].numel(),
)
_RETINANET = Family(
    lambda t, eps: torchvision_retinanet.convert_retinanet_state_dict(t, frozen_eps=eps),
    # Torchvision trains it with labels from 1, so that column 0 is never used.
    torchvision_retinanet.select_retinanet_classes,
    lambda t: t["head.convs.logits.bias"].numel() * 4 // t["head.convs.offsets.bias"].numel(),
)
_SSD = Family(
    lambda t, _: torchvision_ssd.convert_torchvision_ssd_state_dict(t),
    _without_background(torchvision_ssd.select_classes),
    lambda t: _last_bias(t, "logits").numel() * 4 // _last_bias(t, "offsets").numel(),
)

TORCHVISION: dict[str, Family] = {
    "fasterrcnn_resnet50_fpn": _RCNN,
    "fasterrcnn_resnet50_fpn_v2": _RCNN,
    "maskrcnn_resnet50_fpn": _RCNN,
    "maskrcnn_resnet50_fpn_v2": _RCNN,
    "retinanet_resnet50_fpn": _RETINANET,
    "retinanet_resnet50_fpn_v2": _RETINANET,
    "ssd300_vgg16": _SSD,
    "ssdlite320_mobilenet_v3_large": _SSD,
}
"""By torchvision's names of its models."""

YOLOX = tuple(VARIANTS)
"""The models that come as the ONNX files of YOLOX's authors."""


def convert_torchvision(
    model: str,
    tensors: Tensors,
    *,
    source: str,
    class_names: Sequence[str] | None = None,
    frozen_eps: float | None = None,
) -> tuple[Tensors, list[dict[str, Any]]]:
    """Convert a state dict of torchvision's ``model``; returns (state dict, categories).

    Args:
        model: one of `TORCHVISION`.
        tensors: its state dict.
        source: where it is from, for messages.
        class_names: without background; None takes COCO's for a checkpoint of 91 classes.
        frozen_eps: see `convert_torchvision_state_dict`.

    Raises:
        CheckpointError: keys or shapes are not of that model, or the number of classes differs.
    """
    family = TORCHVISION[model]
    try:
        converted = family.convert(tensors, frozen_eps)
        count = family.count(converted)
    except KeyError as error:
        raise CheckpointError(
            f"{source}: the class layers of {model} are missing ({error.args[0]} after conversion)"
        ) from None
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    if count < 2:
        raise CheckpointError(f"{source}: there is no class beside the background")
    with torch.device("meta"):  # the shapes alone
        config = published_config(model).model
        own = count if family is _RETINANET else count - 1
        expected = build_model(config, num_classes=own, load_backbone=False)
    check_state_dict(expected.state_dict(), converted, source)
    if class_names is not None:
        if len(class_names) != count - 1:
            raise CheckpointError(
                f"{source} has {count - 1} classes without background, --classes names "
                f"{len(class_names)}"
            )
        categories = _numbered(class_names)
    else:
        categories = coco_categories()
        if count != 91:
            raise CheckpointError(f"{source} has {count - 1} classes: name them with --classes")
    return family.select(converted, [c["id"] for c in categories]), categories


def convert_yolox(
    model: str, path: Path, class_names: Sequence[str] | None = None
) -> tuple[Tensors, list[dict[str, Any]]]:
    """Convert an ONNX file of YOLOX; returns (state dict, categories).

    Args:
        model: one of `YOLOX`.
        path: the file.
        class_names: None takes COCO's for a file of 80 classes.

    Raises:
        CheckpointError: the file is not of that model, or the number of classes differs.
        OSError: the file cannot be read.
    """
    try:
        tensors, _ = load_yolox_onnx(path, expected=model)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    count = len(tensors["head.convs.levels.0.classes.bias"])
    if class_names is None and count != 80:
        raise CheckpointError(f"{path} has {count} classes: name them with --classes")
    if class_names is not None and len(class_names) != count:
        raise CheckpointError(f"{path} has {count} classes, --classes names {len(class_names)}")
    if class_names is None:
        return tensors, coco_categories()
    return tensors, _numbered(class_names)


def _numbered(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(names, 1)]


def coco_categories() -> list[dict[str, Any]]:
    """COCO's 80 categories; their ids have gaps."""
    weights = get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT
    names: list[str] = weights.meta["categories"]  # index = id, "N/A" where there is none
    return [{"id": i, "name": n} for i, n in enumerate(names) if i > 0 and n != "N/A"]


def published_config(model: str) -> InferenceConfig:
    """How the published ``model`` is built, in instseg's terms."""
    if model in YOLOX:
        side = VARIANTS[model].input_size
        options: dict[str, Any] = {"name": "yolox", "variant": model}
        built: Any = YoloxConfig(**options, score_threshold=0.001, multi_label=True)
        resize: ResizeTransformConfig = LetterboxConfig(name="letterbox", height=side, width=side)
    elif model.startswith("ssd"):
        options = {"name": "ssd", "variant": model}
        built = SsdConfig(**options)
        side = 320 if "lite" in model else 300
        # Torchvision does not smooth before it shrinks.
        resize = ResizeConfig(name="resize", height=side, width=side, antialias=False)
    else:
        built = _retinanet(model) if model.startswith("retinanet") else _rcnn(model)
        resize = ResizeShortestEdgeConfig(name="resize_shortest_edge", sizes=[800], max_size=1333)
    return InferenceConfig(model=built, transforms=[resize])


def _resnet50(is_v2: bool) -> ResNetConfig:
    # Frozen parts without weights: those come with the checkpoint.
    norm: Any = "live" if is_v2 else "frozen"
    return ResNetConfig(name="resnet", depth=50, norm=norm, weights="torchvision")


def _retinanet(model: str) -> RetinaNetConfig:
    is_v2 = model.endswith("_v2")
    return RetinaNetConfig(
        name="retinanet",
        backbone=_resnet50(is_v2),
        norm="group" if is_v2 else None,
        box_loss="giou" if is_v2 else "l1",
        extra_from="c5" if is_v2 else "p5",
        max_detections=300,
        torchvision_compatible=True,
    )


def _rcnn(model: str) -> FasterRcnnConfig | MaskRcnnConfig:
    is_v2 = model.endswith("_v2")
    options: dict[str, Any] = {"backbone": _resnet50(is_v2), "torchvision_compatible": True}
    if is_v2:
        options["neck"] = FpnConfig(norm="batch")
        options["rpn"] = RpnConfig(depth=2)
        options["box_head"] = BoxHeadConfig(body=ConvFcBodyConfig(name="conv_fc"))
    if model.startswith("faster"):
        return FasterRcnnConfig(name="faster_rcnn", **options)
    mask_head = FcnMaskHeadConfig(name="fcn", norm="batch" if is_v2 else None)
    return MaskRcnnConfig(name="mask_rcnn", mask_head=mask_head, **options)


def _last_bias(tensors: Tensors, branch: str) -> Tensor:
    """Of the first map's last layer; before it SSDlite has a depthwise convolution."""
    key = f"head.predictor.{branch}.0."
    return tensors[key + ("1.bias" if key + "1.bias" in tensors else "bias")]
