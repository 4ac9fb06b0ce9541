"""Memory and time of U-Net on one large image, window by window.

    python -m benchmarks.tiling [--size 8000] [--width 16] [--tiles 572 1024] \
        [--padding valid same] [--scores]

For each setting a process of its own builds the U-Net of the paper's depth (``--width 64`` is its
width, which takes 16 times as long), then makes a gray image and labels its pixels. "peak above the
model" is the largest resident memory less the resident memory once the model was built: image,
windows, activations and result are in it. Linux only. Writes results/tiling.json.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import write
from instseg.inference.tiling import TiledSegmenter
from instseg.models.preprocess import Preprocess
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.models.semantic.unet import UNet

LIMIT_MIB = 1.5e9 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tiles", type=int, nargs="+", default=[572, 1024])
    parser.add_argument("--padding", nargs="+", default=["valid", "same"])
    parser.add_argument("--scores", action="store_true", help="keep probabilities, in float16, too")
    args = parser.parse_args()
    rows = []
    for padding, tile in itertools.product(args.padding, args.tiles):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (args.size, args.width, tile, padding, args.scores))
        rows.append(row)
        print(row, flush=True)
    command = f"python -m benchmarks.tiling --size {args.size} --width {args.width}"
    command += f" --tiles {' '.join(map(str, args.tiles))} --padding {' '.join(args.padding)}"
    command += " --scores" if args.scores else ""
    print(write("tiling", {"command": command, "limit_mib": round(LIMIT_MIB), "rows": rows}))


def measure(size: int, width: int, tile: int, padding: Any, scores: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    network = UNet(1, 2, width=width, padding=padding)
    model = SemanticSegmenter(Preprocess([0.5], [0.25], 1), network, lambda *_: {})
    tiled = TiledSegmenter(model, tile)
    before = memory_mib("VmRSS")
    image = np.random.default_rng(0).integers(0, 256, (1, size, size), dtype=np.uint8)
    windows: list[int] = []
    started = time.perf_counter()
    found = tiled(
        image,
        scores=torch.float16 if scores else None,
        on_tile=lambda _, total: windows.append(total),
    )
    seconds = time.perf_counter() - started
    assert found.image_size == (size, size)
    peak = memory_mib("VmHWM") - before
    return {
        "size": size,
        "width": width,
        "padding": padding,
        "tile": tile,
        "windows": windows[-1],
        "model_mib": round(before),
        "peak_above_model_mib": round(peak),
        "below_limit": peak < LIMIT_MIB,
        "seconds": round(seconds, 1),
        "seconds_per_megapixel": round(seconds / (size * size / 1e6), 3),
    }


def memory_mib(key: str) -> float:
    """Resident memory of this process: "VmRSS" as it is, "VmHWM" the most that it was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
