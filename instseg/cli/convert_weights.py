"""`instseg convert-weights`: torchvision's detection checkpoints to weights of instseg."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from instseg.cli.common import run
from instseg.config.build import build_model
from instseg.config.schema import InferenceConfig
from instseg.config.schema_data import ResizeShortestEdgeConfig
from instseg.config.schema_model import (
    BoxHeadConfig,
    ConvFcBodyConfig,
    FasterRcnnConfig,
    FcnMaskHeadConfig,
    FpnConfig,
    MaskRcnnConfig,
    ResNetConfig,
    RpnConfig,
)
from instseg.config.trained import check_state_dict, describe_weights
from instseg.engine.errors import CheckpointError
from instseg.engine.weights import METADATA_KEY, load_weights, save_weights
from instseg.models.foreign.torchvision_rcnn import convert_torchvision_state_dict, select_classes

MODELS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)

_EPILOG = """\
examples:
  convert_weights.py maskrcnn_resnet50_fpn_v2 --download --output mask_rcnn_v2.safetensors
  convert_weights.py fasterrcnn_resnet50_fpn mine.pth --classes person dog --output mine.safetensors

The output carries its configuration and class names: use it with tools/predict.py and
tools/eval_coco.py, or start a training from it with train.init_from.weights. Torchvision's own COCO
checkpoints have 91 classes, of which 80 are used; the others are left out.
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert a torchvision detection checkpoint to safetensors in instseg's names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=MODELS, help="torchvision's name of the model")
    parser.add_argument("input", type=Path, nargs="?", help="its state dict (torch, safetensors)")
    parser.add_argument("--download", action="store_true", help="take torchvision's COCO weights")
    parser.add_argument("--classes", nargs="+", help="class names in order, without background")
    parser.add_argument(
        "--frozen-eps",
        type=float,
        help="epsilon of the checkpoint's frozen batch norm [1e-5; 0 for torchvision's COCO_V1, "
        "which --download takes for the first versions]",
    )
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_intermixed_args(argv)
    if (args.input is None) != args.download:
        parser.error("give either a file or --download")
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    if args.download:
        weights = get_model_weights(args.model).DEFAULT
        tensors = dict(weights.get_state_dict(progress=True, check_hash=True))
    else:
        tensors, _ = load_weights(args.input)
    frozen_eps = args.frozen_eps
    if frozen_eps is None and args.download and not args.model.endswith("_v2"):
        frozen_eps = 0.0
    converted, categories = convert(
        args.model,
        tensors,
        source=str(args.input or args.model),
        class_names=args.classes,
        frozen_eps=frozen_eps,
    )
    metadata = describe_weights(published_config(args.model), categories)
    save_weights(args.output, converted, {METADATA_KEY: json.dumps(metadata)})
    print(f"{args.output}: {args.model} with {len(categories)} classes")
    return 0


def convert(
    model: str,
    tensors: dict[str, Tensor],
    *,
    source: str,
    class_names: Sequence[str] | None = None,
    frozen_eps: float | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Convert a state dict of torchvision's ``model``; returns (state dict, categories).

    Args:
        model: one of `MODELS`.
        tensors: its state dict.
        source: where it is from, for messages.
        class_names: without background; None takes COCO's for a checkpoint of 91 classes.
        frozen_eps: see `convert_torchvision_state_dict`.

    Raises:
        CheckpointError: keys or shapes are not of that model, or the number of classes differs.
    """
    try:
        converted = convert_torchvision_state_dict(tensors, frozen_eps=frozen_eps)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    bias = converted.get("box_head.predictor.cls_score.bias")
    if bias is None or bias.numel() < 2:
        raise CheckpointError(
            f"{source}: roi_heads.box_predictor.cls_score.bias is missing, or has no class beside "
            "the background"
        )
    count = bias.numel() - 1
    with torch.device("meta"):  # the shapes alone
        config = published_config(model).model
        expected = build_model(config, num_classes=count, load_backbone=False)
    check_state_dict(expected.state_dict(), converted, source)
    if class_names is not None:
        if len(class_names) != count:
            raise CheckpointError(
                f"{source} has {count} classes without background, --classes names "
                f"{len(class_names)}"
            )
        return converted, [{"id": i, "name": n} for i, n in enumerate(class_names, 1)]
    coco = _coco_names(model)
    if count != len(coco) - 1:
        raise CheckpointError(f"{source} has {count} classes: name them with --classes")
    ids = [i for i, name in enumerate(coco) if i > 0 and name != "N/A"]
    kept = select_classes(converted, [i - 1 for i in ids])
    return kept, [{"id": i, "name": coco[i]} for i in ids]


def published_config(model: str) -> InferenceConfig:
    """How torchvision builds its ``model``, in instseg's terms."""
    is_v2 = model.endswith("_v2")
    options: dict[str, Any] = {
        # Frozen parts without weights: those come with the checkpoint.
        "backbone": ResNetConfig(
            name="resnet", depth=50, norm="live" if is_v2 else "frozen", weights="torchvision"
        ),
        "torchvision_compatible": True,
    }
    if is_v2:
        options["neck"] = FpnConfig(norm="batch")
        options["rpn"] = RpnConfig(depth=2)
        options["box_head"] = BoxHeadConfig(body=ConvFcBodyConfig(name="conv_fc"))
    resize = ResizeShortestEdgeConfig(name="resize_shortest_edge", sizes=[800], max_size=1333)
    if model.startswith("faster"):
        built: Any = FasterRcnnConfig(name="faster_rcnn", **options)
    else:
        mask_head = FcnMaskHeadConfig(name="fcn", norm="batch" if is_v2 else None)
        built = MaskRcnnConfig(name="mask_rcnn", mask_head=mask_head, **options)
    return InferenceConfig(model=built, transforms=[resize])


def _coco_names(model: str) -> list[str]:
    """Torchvision's 91 names: index = COCO's category id, "N/A" where there is none."""
    names: list[str] = get_model_weights(model).DEFAULT.meta["categories"]
    return names
