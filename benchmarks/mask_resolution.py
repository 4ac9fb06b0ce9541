"""How good masks of M x M pixels in a box can be: true masks through a mask head's grid and back.

    python -m benchmarks.mask_resolution

Each true object of a configuration's validation images gives the target that a mask head would
learn at M, which is pasted back as a prediction with the true box. Its mask AP and boundary AP
are the most that a perfect mask head of that resolution could reach with perfect boxes. Writes
benchmarks/results/mask_resolution.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.common import write
from instseg.config.build import build_coco_evaluator, read_val_index
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.data.dataset import instances_of
from instseg.ops import mask_targets
from instseg.structures import Instances, RoIMasks

CONFIGS = ("pennfudan", "fruits_nuts")
SIDES = (28, 56, 112)


def perfect(objects: Instances, side: int) -> Instances:
    """The true objects as a mask head of ``side`` x ``side`` would give them at its best."""
    every = torch.arange(len(objects))
    probs = mask_targets(objects.masks, every, objects.boxes, side)
    scores = torch.ones(len(objects))
    return Instances(
        objects.image_size, objects.boxes, objects.labels, scores, masks=RoIMasks(probs)
    )


def limits(config: Config, side: int) -> dict[str, float]:
    index = read_val_index(config)
    evaluator = build_coco_evaluator(config, index, index.class_names)
    for record in index.records:
        objects = instances_of(record, with_masks=True)
        objects = objects[~objects.is_crowd] if objects.is_crowd is not None else objects
        evaluator.update([record.image_id], [perfect(objects, side)])
    scores = evaluator.compute()
    return {kind: scores[kind].stats["AP"] for kind in ("segm", "boundary")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in CONFIGS:
        path = Path("configs") / name / "mask_rcnn_lite0_fpn.yaml"
        config = load_config(path, Config, ["evaluation.iou_types=[segm, boundary]"])
        found[name] = {}
        for side in SIDES:
            found[name][str(side)] = limits(config, side)
            segm, boundary = found[name][str(side)].values()
            print(f"{name}, {side} x {side}: mask AP {segm:.3f}, boundary AP {boundary:.3f}")
    print(f"written to {write('mask_resolution', {'limits': found})}")


if __name__ == "__main__":
    main()
