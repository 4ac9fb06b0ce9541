"""Parameters and operations of the models of configs/coco, as a table for docs/models.md.

    python -m benchmarks.model_sizes

For COCO's 80 classes. Operations are those of the parts that work on whole images (backbone, neck,
dense head; of Mask R-CNN the first two), at the size that the validation images are resized to:
twice the multiplications, in units of 10^9. Nothing is computed: shapes alone are needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from instseg.config.build import build_model
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.schema_data import ResizeShortestEdgeConfig
from instseg.models.detection.detector import Detector
from instseg.models.detection.grid import GridHead

CONFIGS = Path(__file__).parents[1] / "configs" / "coco"


def main() -> None:
    print("| config | parameters | input | GFLOPs |\n|---|---|---|---|")
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = load_config(path, Config)
        with torch.device("meta"):
            model = build_model(config.model, num_classes=80, load_backbone=False).eval()
            height, width = size = input_size(config)
            flops = operations(model, size)
        count = sum(p.numel() for p in model.parameters())
        print(f"| {path.stem} | {count:,} | {height} x {width} | {flops / 1e9:.2f} |")


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
