"""`instseg convert-weights`: checkpoints of torchvision and YOLOX to weights of instseg."""

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

from instseg.cli.common import image_files, run
from instseg.cli.published import (
    TORCHVISION,
    YOLOX,
    convert_torchvision,
    convert_yolox,
    published_config,
)
from instseg.config.build import build_model, build_transforms
from instseg.config.schema import InferenceConfig
from instseg.config.trained import describe_weights
from instseg.data.image_io import read_image
from instseg.engine.weights import METADATA_KEY, load_weights, save_weights
from instseg.inference.predictor import Predictor
from instseg.models.fuse import restore_batch_norm

_EPILOG = """\
examples:
  convert_weights.py maskrcnn_resnet50_fpn_v2 --download --output mask_rcnn_v2.safetensors
  convert_weights.py fasterrcnn_resnet50_fpn mine.pth --classes person dog --output mine.safetensors
  convert_weights.py yolox_nano yolox_nano.onnx --images photos --output yolox_nano.safetensors

The output carries its configuration and class names: use it with tools/predict.py and
tools/eval_coco.py, or start a training from it with train.init_from.weights. Torchvision's own COCO
checkpoints have 91 classes, of which 80 are used; the others are left out.

YOLOX's ONNX files hold no batch norm any more: it is folded into the convolutions. That is as good
for predictions; to train from them, give some tens of --images, on which it is measured anew.
"""
# Published with a frozen batch norm that adds nothing to the variance.
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
_IMAGES = 64  # of a folder; more change nothing
_AT_ONCE = 8


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert a checkpoint of torchvision (state dict) or of YOLOX (ONNX) to "
        "safetensors in instseg's names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=(*TORCHVISION, *YOLOX), help="its published name")
    parser.add_argument("input", type=Path, nargs="?", help="torch, safetensors or ONNX file")
    parser.add_argument("--download", action="store_true", help="take torchvision's COCO weights")
    parser.add_argument("--classes", nargs="+", help="class names in order, without background")
    parser.add_argument(
        "--frozen-eps",
        type=float,
        help="epsilon of the checkpoint's frozen batch norm [1e-5; 0 for torchvision's COCO_V1, "
        "which --download takes for the first versions]",
    )
    parser.add_argument("--images", type=Path, help="YOLOX: folder to measure batch norm on")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_intermixed_args(argv)
    if (args.input is None) != args.download:
        parser.error("give either a file or --download")
    if args.model in YOLOX and args.input is None:
        parser.error("--download is for torchvision's models: give YOLOX's ONNX file")
    if args.images is not None and args.model not in YOLOX:
        parser.error("--images is for YOLOX: torchvision's checkpoints keep their batch norm")
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    config = published_config(args.model)
    if args.model in YOLOX:
        converted, categories = convert_yolox(args.model, args.input, args.classes)
        if args.images is not None:
            converted = _with_batch_norm(converted, config, len(categories), args.images)
        else:
            print("batch norm stays folded: good for predictions; to train, convert with --images")
    else:
        converted, categories = _from_torchvision(args)
    metadata = describe_weights(config, categories)
    save_weights(args.output, converted, {METADATA_KEY: json.dumps(metadata)})
    print(f"{args.output}: {args.model} with {len(categories)} classes")
    return 0


def _from_torchvision(args: argparse.Namespace) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    frozen_eps = args.frozen_eps
    if args.download:
        weights = get_model_weights(args.model).DEFAULT
        tensors = dict(weights.get_state_dict(progress=True, check_hash=True))
        if frozen_eps is None and args.model in _WITHOUT_EPSILON:
            frozen_eps = 0.0
    else:
        tensors, _ = load_weights(args.input)
    return convert_torchvision(
        args.model,
        tensors,
        source=str(args.input or args.model),
        class_names=args.classes,
        frozen_eps=frozen_eps,
    )


def _with_batch_norm(
    tensors: dict[str, Tensor], config: InferenceConfig, num_classes: int, folder: Path
) -> dict[str, Tensor]:
    """The weights with batch norm as it is on the images of ``folder``."""
    paths = list(image_files([folder]))
    if not paths:
        raise FileNotFoundError(f"no images in {folder}")
    paths = paths[:: max(1, len(paths) // _IMAGES)][:_IMAGES]
    model = build_model(config.model, num_classes=num_classes)
    model.load_state_dict(tensors)
    batches = [paths[i : i + _AT_ONCE] for i in range(0, len(paths), _AT_ONCE)]
    transforms = build_transforms(config.transforms)

    def see(copy: torch.nn.Module, batch: object) -> object:
        assert isinstance(batch, list)
        return Predictor(copy, transforms)([read_image(path) for path in batch])

    return restore_batch_norm(model, batches, see).state_dict()
