"""Everything that needs a GPU, in one command: `gpu` tests, tables of ops and speed, three seeds.

    python -m benchmarks.gpu

Writes ops_gpu.json, speed_vs_torchvision.json and accuracy_vs_torchvision.json in results/, which
name the GPU.
Stops at the first part that fails.
"""

from __future__ import annotations

import subprocess
import sys

import torch

PARTS = (
    ("-m", "pytest", "-q", "-m", "gpu"),
    ("-m", "benchmarks.ops", "--rounds", "50"),
    ("-m", "benchmarks.speed_vs_torchvision", "--rounds", "50"),
    ("-m", "benchmarks.accuracy_vs_torchvision", "--seeds", "0", "1", "2"),
)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device")
    for part in PARTS:
        print("python", *part, flush=True)
        subprocess.run([sys.executable, *part], check=True)


if __name__ == "__main__":
    main()
