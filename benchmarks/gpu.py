"""Everything that needs a GPU, in one command: `gpu` tests, tables of ops and speed, trainings.

    python -m benchmarks.gpu

Writes ops_gpu.json, unet_gpu.json, speed_vs_torchvision.json and accuracy_vs_torchvision.json in
results/, which name the GPU, and what is trained to runs/. Stops at the first part that fails.
"""

from __future__ import annotations

import subprocess
import sys

import torch

OUTLINES = ("--iou-type", "bbox", "segm", "boundary")


def trained(name: str, scorer: str, *options: str) -> tuple[tuple[str, ...], ...]:
    """Training ``configs/NAME.yaml``, and scoring it with a command of tools/."""
    config = ("--config", f"configs/{name}.yaml")
    weights = ("--weights", f"runs/{name}/final.safetensors")
    return (
        ("tools/train_net.py", *config),
        (f"tools/{scorer}.py", *config, *weights, *options),
    )


PARTS = (
    ("-m", "pytest", "-q", "-m", "gpu"),
    ("-m", "benchmarks.ops", "--rounds", "50"),
    ("-m", "benchmarks.speed_vs_torchvision", "--rounds", "50"),
    ("-m", "benchmarks.unet", "--device", "cuda"),
    ("-m", "benchmarks.accuracy_vs_torchvision", "--seeds", "0", "1", "2"),
    *trained("isbi2012/unet_paper", "eval_maps", "--metric", "semantic", "em", "threshold"),
    *trained("pennfudan/mask_rcnn_lite0_fpn_unet_head", "eval_coco", *OUTLINES),
    *trained("fruits_nuts/mask_rcnn_lite0_fpn", "eval_coco", *OUTLINES),
    *trained("fruits_nuts/mask_rcnn_lite0_fpn_unet_head", "eval_coco", *OUTLINES),
)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    for part in PARTS:
        print("python", *part, flush=True)
        subprocess.run([sys.executable, *part], check=True)


if __name__ == "__main__":
    main()
