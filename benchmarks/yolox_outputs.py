"""Raw outputs of the converted YOLOX-Nano against onnxruntime's on the file its weights are from.

    python -m benchmarks.yolox_outputs [--images 16] [--folder DIR] [--weights yolox_nano.onnx]

Both see the same letterboxed photographs, and so does a run of the converted network in float64,
which tells how far rounding takes either. Prints the largest differences, and writes
results/yolox_outputs.json.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import cv2
import onnxruntime
import torch
from torch import Tensor

from benchmarks.common import write
from instseg.models.detection.detector import Detector
from instseg.models.detection.yolox import yolox_nano
from instseg.models.foreign.yolox_onnx import load_yolox_onnx

SIDE = 416
ONNX = Path("../shared/weights/yolox_nano.onnx")
PHOTOGRAPHS = Path("../shared/data/coco_tiny80/val2017")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--weights", type=Path, default=ONNX)
    args = parser.parse_args()
    paths = sorted(args.folder.glob("*.jpg"))[: args.images]
    pixels = torch.stack([letterboxed(path) for path in paths])
    session = onnxruntime.InferenceSession(args.weights, providers=["CPUExecutionProvider"])
    model = yolox_nano(80).eval()
    model.load_state_dict(load_yolox_onnx(args.weights, expected="yolox_nano")[0])
    # The file takes one image, blue first.
    theirs = torch.cat(
        [
            torch.from_numpy(session.run(None, {"images": x.flip(1).numpy()})[0])
            for x in pixels[:, None]
        ]
    )
    with torch.inference_mode():
        ours = torch.cat([raw_outputs(model, x) for x in pixels[:, None]])
        double = copy.deepcopy(model).double()
        exact = torch.cat([raw_outputs(double, x) for x in pixels[:, None].double()])
    figures = {
        "images": len(paths),
        "largest offset": theirs[..., :4].abs().max().item(),
        "within 1e-4": ((ours - theirs).abs() <= 1e-4).double().mean().item(),
        "instseg from onnxruntime": apart(ours, theirs),
        "instseg from float64": apart(ours, exact),
        "onnxruntime from float64": apart(theirs, exact),
    }
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    command = f"python -m benchmarks.yolox_outputs --images {args.images}"
    print(write("yolox_outputs", {"command": command, **figures}))


def letterboxed(path: Path) -> Tensor:
    """``float32 [3, SIDE, SIDE]`` of 0..255, RGB, grey at the right and bottom."""
    photograph = cv2.imread(str(path))[..., ::-1]
    height, width = photograph.shape[:2]
    scale = SIDE / max(height, width)
    size = (int(width * scale), int(height * scale))
    resized = cv2.resize(photograph, size, interpolation=cv2.INTER_LINEAR)
    padded = torch.full((3, SIDE, SIDE), 114.0)
    padded[:, : size[1], : size[0]] = torch.from_numpy(resized.copy()).permute(2, 0, 1)
    return padded


def raw_outputs(model: Detector, pixels: Tensor) -> Tensor:
    """``[B, A, 85]`` as the file has them: offsets of the box, objectness, a score a class."""
    backbone, neck, convs = model.networks
    output = convs(neck(backbone(pixels)))
    scores = output.objectness[..., None].sigmoid(), output.classes.sigmoid()
    return torch.cat([output.boxes, *scores], dim=-1)


def apart(first: Tensor, second: Tensor) -> dict[str, float]:
    """The largest differences."""
    difference = (first - second).abs()
    return {
        "offsets": float(f"{difference[..., :4].max().item():.2g}"),
        "scores": float(f"{difference[..., 4:].max().item():.2g}"),
    }


if __name__ == "__main__":
    main()
