"""Training steps and inference of Mask R-CNN against torchvision's, in one process, in turn.

    python -m benchmarks.speed_vs_torchvision

The model is that of configs/pennfudan (EfficientNet-Lite0, FPN of 128 channels), the images are
generated street-sized ones of 256 x 320 with three objects each. Prints a table and writes
results/speed_vs_torchvision.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import alternate, summary, write
from benchmarks.torchvision_peer import TorchvisionMaskRCNN
from instseg.config.build import build_device, build_model
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.models.foreign.torchvision_rcnn import convert_torchvision_state_dict
from instseg.ops import rle
from instseg.structures import Instances, SparseMasks

CONFIG = Path(__file__).parents[1] / "configs" / "pennfudan" / "mask_rcnn_lite0_fpn.yaml"
SIZE = (256, 320)
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    args = parser.parse_args()
    config = load_config(CONFIG, Config, ["model.backbone.weights=null"])
    device = build_device(config)
    torch.manual_seed(0)
    models = {
        "instseg": build_model(config.model, num_classes=1).to(device),
        "torchvision": TorchvisionMaskRCNN(config.model, num_classes=1).to(device),
    }
    # The same weights on both sides: other proposals would mean other numbers of RoIs to work on.
    models["instseg"].load_state_dict(
        convert_torchvision_state_dict(models["torchvision"].model.state_dict())
    )
    rows = []
    for name, precision in ((n, DTYPES[n]) for n in args.precisions):
        for task, batch in (("train", 4), ("infer", 1), ("infer", 4)):
            images, targets = make_batch(batch)
            sides = {
                side: step(model, images, targets, precision, device, train=task == "train")
                for side, model in models.items()
            }
            seconds = alternate(sides, rounds=args.rounds)
            row = {"task": task, "batch": batch, "precision": name}
            rows.append(row | summary(seconds, "instseg", "torchvision"))
            print(rows[-1], flush=True)
    precisions = " ".join(args.precisions)
    command = (
        f"python -m benchmarks.{Path(__file__).stem} --rounds {args.rounds} "
        f"--precisions {precisions}"
    )
    print(write("speed_vs_torchvision", {"command": command, "rows": rows}))


def make_batch(size: int) -> tuple[list[torch.Tensor], list[Instances]]:
    """Noise images with three upright ellipses each, as run-length masks."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    images, targets = [], []
    for _ in range(size):
        images.append(torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8))
        boxes = torch.tensor([[30.0, 40, 110, 240], [150, 60, 230, 250], [240, 30, 300, 220]])
        masks = [
            ((x + 0.5 - (b[0] + b[2]) / 2) / ((b[2] - b[0]) / 2)) ** 2
            + ((y + 0.5 - (b[1] + b[3]) / 2) / ((b[3] - b[1]) / 2)) ** 2
            <= 1
            for b in boxes
        ]
        codes = [rle.encode(m.numpy()) for m in masks]
        labels = torch.zeros(3, dtype=torch.int64)
        targets.append(Instances(SIZE, boxes, labels, masks=SparseMasks(codes, SIZE, SIZE)))
    return images, targets


def step(
    model: nn.Module,
    images: list[torch.Tensor],
    targets: list[Instances],
    precision: torch.dtype | None,
    device: torch.device,
    *,
    train: bool,
):
    """A function that does one training step (without the optimiser) or one inference."""
    autocast = torch.autocast(
        device.type, precision or torch.bfloat16, enabled=precision is not None
    )
    parameters = list(model.parameters())

    def training() -> None:
        model.train()
        for parameter in parameters:
            parameter.grad = None
        with autocast:
            loss = sum(model(images, targets).values())
        loss.backward()

    @torch.inference_mode()
    def inference() -> None:
        model.eval()
        with autocast:
            model(images)

    return training if train else inference


if __name__ == "__main__":
    main()
