"""What the benchmarks share: timing two sides in turn, and saying on what machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The machine and the versions, for the JSON of a result."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("instseg", "torch", "torchvision", "timm")},
    }


def alternate(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call of each side; one call of each side in turn, ``rounds`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, call in sides.items():
            _synchronise()
            started = time.perf_counter()
            call()
            _synchronise()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: Mapping[str, list[float]], ours: str, peer: str) -> dict[str, float]:
    """Medians in milliseconds, and how many times faster ``ours`` is, pair by pair."""
    ratios = [p / o for o, p in zip(seconds[ours], seconds[peer], strict=True)]
    return {
        f"{ours}_ms": round(statistics.median(seconds[ours]) * 1e3, 2),
        f"{peer}_ms": round(statistics.median(seconds[peer]) * 1e3, 2),
        "speedup": round(statistics.median(ratios), 3),
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write ``results/NAME.json`` with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    return path


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
