"""Inference of one-stage detectors against onnxruntime and torchvision, in one process, in turn.

    python -m benchmarks.one_stage [--rounds 9] [--only yolox] [--weights yolox_nano.onnx]

* YOLOX-Nano at 416 x 416 against onnxruntime on the file its weights are from: from the normalised
  batch to raw outputs, since the file holds no more. The file takes one image: for a batch of eight
  onnxruntime is called eight times.
* SSD300 and RetinaNet (ResNet-50-FPN, 320 x 416) against torchvision's on the same random weights:
  from uint8 images to detections. RetinaNet's last layers are spread so that it finds something.

instseg's models are those of `instseg.models.optimize`, plain and compiled. The floor is the
network's number of operations over the rate of a single 3x3 convolution of 256 channels here.
Prints a table and writes results/one_stage*.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import alternate, summary, write
from instseg.models.detection.detector import Detector
from instseg.models.detection.retinanet import retinanet_resnet50_fpn
from instseg.models.detection.ssd import ssd300_vgg16
from instseg.models.detection.yolox import yolox_nano
from instseg.models.foreign.torchvision_retinanet import convert_retinanet_state_dict
from instseg.models.foreign.torchvision_ssd import convert_torchvision_ssd_state_dict
from instseg.models.foreign.yolox_onnx import load_yolox_onnx
from instseg.models.optimize import optimize_for_inference

ONNX = Path("../shared/weights/yolox_nano.onnx")
SIZES = {"ssd300_vgg16": (300, 300), "retinanet_resnet50_fpn": (320, 416)}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
Sides = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--weights", type=Path, default=ONNX)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", choices=["yolox", "peers"], help="one half of the measurements")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        parts = {
            "yolox": yolox(args.weights, args.batches, args.rounds),
            "peers": peers(args.batches, args.rounds),
        }
        for row in chain(*([parts[args.only]] if args.only else parts.values())):
            rows.append(row)
            print(row, flush=True)
    batches = " ".join(map(str, args.batches))
    command = f"python -m benchmarks.one_stage --rounds {args.rounds} --batches {batches}"
    command += f" --only {args.only}" if args.only else ""
    name = "_".join(["one_stage", *([args.only] if args.only else [])])
    print(write(name, {"command": command, "rows": rows}))


def yolox(weights: Path, batches: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its threads go on spinning after a call, on the cores that the next side's call needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(weights, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    model = yolox_nano(80)
    model.load_state_dict(load_yolox_onnx(weights, expected="yolox_nano")[0])
    for batch in batches:
        pixels = torch.randint(0, 256, (batch, 3, 416, 416)).float()
        own = [image[None].numpy() for image in pixels]
        sides: Sides = {"onnxruntime": lambda own=own: [session.run(None, {name: x}) for x in own]}
        for kind, fast in variants(model).items():
            sides[kind] = lambda fast=fast, pixels=pixels: raw_outputs(fast, pixels)
        flops = count_flops(lambda pixels=pixels: raw_outputs(model.eval(), pixels))
        yield from compare("yolox_nano", "fp32", batch, sides, "onnxruntime", flops, rounds)


def raw_outputs(model: Detector, pixels: Tensor) -> object:
    backbone, neck, convs = model.networks
    return convs(neck(backbone(pixels)))


def peers(batches: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    for name, (model, peer) in build_pairs().items():
        fast = variants(model)
        for precision, dtype in PRECISIONS.items():
            for batch in batches:
                images = [torch.randint(0, 256, (3, *SIZES[name])).byte() for _ in range(batch)]
                sides: Sides = {"torchvision": runner(peer, [i / 255 for i in images], dtype)}
                sides |= {kind: runner(own, images, dtype) for kind, own in fast.items()}
                flops = count_flops(runner(model.eval(), images, None))
                few = rounds if batch == 1 else max(3, rounds // 3)  # seconds a call
                yield from compare(name, precision, batch, sides, "torchvision", flops, few)


def build_pairs() -> dict[str, tuple[Detector, nn.Module]]:
    options = {"weights": None, "weights_backbone": None, "num_classes": 91}
    ssd, retinanet = tv.ssd300_vgg16(**options), tv.retinanet_resnet50_fpn(**options)
    nn.init.normal_(retinanet.head.classification_head.cls_logits.weight, std=0.03)
    for peer in (ssd, retinanet):
        peer.eval()
        peer.transform.resize = lambda image, target: (image, target)
    own_ssd = ssd300_vgg16(90)
    own_ssd.load_state_dict(convert_torchvision_ssd_state_dict(ssd.state_dict()))
    own_retinanet = retinanet_resnet50_fpn(91, torchvision=True)
    own_retinanet.load_state_dict(convert_retinanet_state_dict(retinanet.state_dict()))
    return {"ssd300_vgg16": (own_ssd, ssd), "retinanet_resnet50_fpn": (own_retinanet, retinanet)}


def variants(model: Detector) -> dict[str, Detector]:
    return {
        "instseg": optimize_for_inference(model),
        "instseg compiled": optimize_for_inference(model, compiled=True),
    }


def runner(
    model: nn.Module, images: list[Tensor], dtype: torch.dtype | None
) -> Callable[[], object]:
    def run() -> object:
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            return model(images)

    return run


def compare(
    name: str, precision: str, batch: int, sides: Sides, peer: str, flops: float, rounds: int
) -> Iterator[dict[str, Any]]:
    seconds = alternate(sides, rounds=rounds)
    floor = flops / convolution_rate(PRECISIONS[precision])
    for side in list(sides)[1:]:
        row = {"model": name, "precision": precision, "batch": batch}
        row |= summary(seconds, side, peer)
        median = row[f"{side}_ms"] / 1e3
        yield row | {
            "images_per_second": round(batch / median, 2),
            "gflops": round(flops / 1e9, 1),
            "floor_ms": round(floor * 1e3, 1),
        }


def count_flops(call: Callable[[], object]) -> float:
    """Twice the multiplications of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def convolution_rate(dtype: torch.dtype | None) -> float:
    """Operations a second of a 3x3 convolution with 256 channels on 60 x 80 pixels."""
    layer = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 60, 80).to(memory_format=torch.channels_last)
    if dtype is not None:
        layer, x = layer.to(dtype), x.to(dtype)
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        layer(x)
        seconds.append(time.perf_counter() - started)
    return 2 * 256 * 256 * 9 * 60 * 80 / min(seconds)


if __name__ == "__main__":
    main()
