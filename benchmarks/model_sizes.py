"""Parameters and operations of the models, as the tables of docs/models.md and docs/semantic.md.

    python -m benchmarks.model_sizes detectors
    python -m benchmarks.model_sizes semantic
    python -m benchmarks.model_sizes mask_heads

Detectors are those of configs/coco, for COCO's 80 classes. Operations are those of the parts that
work on whole images (backbone, neck, dense head; of Mask R-CNN the first two), at the size that the
validation images are resized to. Semantic networks are those of the papers; their operations are
those of an image of 512 x 512, with the borders that are mirrored around it. Of mask heads, what
one RoI costs between its pooled features and its mask. Operations are twice the multiplications,
in units of 10^9. Nothing is computed: shapes alone are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from instseg.config.build import build_model
from instseg.config.build_semantic import build_semantic
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.schema_data import ResizeShortestEdgeConfig
from instseg.config.schema_semantic import SemanticConfig
from instseg.models.detection.detector import Detector
from instseg.models.detection.grid import GridHead
from instseg.models.heads import FCNMaskBody, MaskPredictor
from instseg.models.heads.unet_mask import ClassMaskPredictor, UNetMaskBody
from instseg.models.semantic.pix2pix import pix2pix

CONFIGS = Path(__file__).parents[1] / "configs" / "coco"
SIDE = 512

RESNET34 = {"name": "resnet", "depth": 34, "norm": "live", "freeze_at": 0}
RESNET50 = RESNET34 | {"depth": 50}
NETWORKS: list[tuple[dict[str, Any], int, int]] = [
    ({"name": "unet", "padding": "valid"}, 1, 2),
    ({"name": "unet"}, 1, 2),
    ({"name": "unet", "attention": "true"}, 1, 2),
    ({"name": "unet", "width": 16}, 1, 2),
    ({"name": "encoder_unet", "backbone": RESNET34}, 3, 2),
    ({"name": "ternausnet"}, 3, 1),
    ({"name": "fcn", "stride": 32}, 3, 21),
    ({"name": "fcn", "stride": 16}, 3, 21),
    ({"name": "fcn", "stride": 8}, 3, 21),
    ({"name": "segnet"}, 3, 11),
    ({"name": "fpn", "backbone": RESNET50}, 3, 54),
    ({"name": "unet_fpn"}, 1, 2),
    ({"name": "patch_classifier"}, 1, 2),
]
"""``model.network`` of a configuration, channels of the images, outputs: those of the papers."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters and operations of models.")
    tables = {"detectors": detectors, "semantic": semantic, "mask_heads": mask_heads}
    parser.add_argument("table", choices=list(tables), nargs="?", default="detectors")
    tables[parser.parse_args().table]()


def detectors() -> None:
    print("| config | parameters | input | GFLOPs |\n|---|---|---|---|")
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = load_config(path, Config)
        with torch.device("meta"):
            model = build_model(config.model, num_classes=80, load_backbone=False).eval()
            assert isinstance(model, Detector)
            height, width = size = input_size(config)
            flops = operations(model, size)
        print(f"| {path.stem} | {parameters(model):,} | {height} x {width} | {flops / 1e9:.2f} |")


def semantic() -> None:
    print("| network | in, out | parameters | network sees | GFLOPs |\n|---|---|---|---|---|")
    for section, channels, outputs in NETWORKS:
        settings = {"name": "semantic", "network": section, "image_channels": channels}
        if outputs == 1:
            settings |= {"classes": "multilabel", "loss": {"bce": 1}}
        config = SemanticConfig.model_validate(settings)
        with torch.device("meta"):
            classes = 1 if outputs == 1 else outputs - 1
            network = build_semantic(config, num_classes=classes).network.eval()
            side = network.covering_size(SIDE)
            flops = counted(network, torch.empty(1, channels, side, side))
        print(
            f"| {described(section)} | {channels}, {outputs} | {parameters(network):,} "
            f"| {side} x {side} | {flops / 1e9:.2f} |"
        )
    with torch.device("meta"):
        model = pix2pix().eval()
        flops = counted(model.generator, torch.empty(1, 3, SIDE, SIDE))
    generator, discriminator = parameters(model.generator), parameters(model.discriminator)
    print(
        f"| pix2pix, with discriminator | 3, 3 | {generator:,} + {discriminator:,} "
        f"| {SIDE} x {SIDE} | {flops / 1e9:.2f} |"
    )


def mask_heads() -> None:
    print("| mask head | mask | parameters | million multiplications an RoI | of FCN's |")
    print("|---|---|---|---|---|")
    with torch.device("meta"):
        labels = torch.zeros(1, dtype=torch.int64)
        fcn = nn.ModuleList([FCNMaskBody(256), MaskPredictor(256, 80)])
        first = counted(of_roi(fcn, labels), torch.empty(1, 256, 14, 14)) / 2
        print(f"| fcn | 28 x 28 | {parameters(fcn):,} | {first / 1e6:.0f} | 1.00 |")
        for depth in (2, 3):
            for side in (56, 112):
                body = UNetMaskBody(depth=depth, resolution=side)
                head = nn.ModuleList([body, ClassMaskPredictor(body.channels, 80)])
                context = torch.empty(1, body.in_channels, body.pooled_size, body.pooled_size)
                detail = torch.empty(1, body.detail_channels, side, side)
                cost = counted(of_roi(head, labels), (context, detail)) / 2
                print(
                    f"| unet, depth {depth} | {side} x {side} | {parameters(head):,} "
                    f"| {cost / 1e6:.0f} | {cost / first:.2f} |"
                )


def of_roi(head: nn.ModuleList, labels: Tensor) -> Any:
    body, predictor = head
    return lambda pooled: predictor(body(pooled), labels)


def counted(function: Any, argument: Any) -> int:
    """Operations of a call."""
    with FlopCounterMode(display=False) as counter:
        function(argument)
    return int(counter.get_total_flops())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def described(section: dict[str, Any]) -> str:
    """``name: unet, padding: valid``."""
    backbone = section.get("backbone")
    shown = section | ({"backbone": f"ResNet-{backbone['depth']}"} if backbone else {})
    return ", ".join(f"{v}" if k == "name" else f"{k}: {v}" for k, v in shown.items())


def input_size(config: Config) -> tuple[int, int]:
    (resize,) = config.data.val_transforms
    if isinstance(resize, ResizeShortestEdgeConfig):
        return 800, 1344  # an image of 3:5, padded to whole strides
    return resize.all_sizes()[0]


def operations(model: Detector, size: tuple[int, int]) -> int:
    """Of one image ``[3, *size]``."""
    backbone, neck, *head = model.networks
    with FlopCounterMode(display=False) as counter:
        features = neck(backbone(torch.empty(1, 3, *size)))
        for network in head:
            network(features[-1] if isinstance(model.head, GridHead) else features)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
