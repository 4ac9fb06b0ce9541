"""The ops of instseg against torchvision's: alternating calls in one process, medians.

    python -m benchmarks.ops [--rounds 15] [--only roi_align nms ...]

Prints a table and writes results/ops_cpu.json or, where there is a GPU, results/ops_gpu.json (there
in fp32 and bf16, with memory and host synchronisations). A floor is the time of the op's least
traffic with memory at the rate at which this machine copies, or of its arithmetic at the rate of a
large matrix product, whichever is longer: both are measured first. docs/ops.md explains the lines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alternate, summary, write
from benchmarks.ops_cases import GROUPS, Case, mask_sides
from instseg.ops import available_backends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--peak-of", choices=["instseg", "torchvision"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print(peak_of_masks(args.peak_of))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = measured_rates(device)
    print(rates, flush=True)
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]
    rows = []
    for dtype in dtypes:
        for group in args.only:
            for case in GROUPS[group](device, dtype):
                rows.append({"dtype": str(dtype)[6:], **measure(case, args.rounds, rates, device)})
                print(rows[-1], flush=True)
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.ops --rounds {args.rounds} --only {' '.join(args.only)}",
        "backends": available_backends(device),
        "rates": rates,
        "rows": rows,
    }
    if "masks" in args.only and device.type == "cpu" and sys.platform == "linux":
        content["masks_peak_mib"] = peaks_of_masks()
        print(content["masks_peak_mib"])
    print(write("ops_gpu" if device.type == "cuda" else "ops_cpu", content))


def measure(
    case: Case, rounds: int, rates: dict[str, float], device: torch.device
) -> dict[str, Any]:
    """Times, ratio and floor of one case, and on a GPU its memory and synchronisations."""
    row: dict[str, Any] = {"case": case.name}
    row |= summary(
        alternate({"instseg": case.ours, "torchvision": case.peer}, rounds=rounds),
        "instseg",
        "torchvision",
    )
    row["wanted"] = case.wanted[device.type == "cuda"]
    floor = max(case.traffic / rates["copy_bytes_per_s"], case.flops / rates["flops_per_s"])
    row["floor_ms"] = round(floor * 1e3, 3)
    if device.type == "cuda":
        for name, call in (("instseg", case.ours), ("torchvision", case.peer)):
            row[f"{name}_peak_mib"] = cuda_peak(call)
            row[f"{name}_syncs"] = synchronises(call)
    return row


def measured_rates(device: torch.device) -> dict[str, float]:
    """Bytes a second of a large copy (read and written), FLOP/s of a large fp32 product."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.zeros_like(source)
    matrix = torch.randn(2048, 2048, device=device)
    calls = {"copy": lambda: target.copy_(source), "product": lambda: matrix @ matrix}
    seconds = {name: min(times) for name, times in alternate(calls, rounds=7).items()}
    return {
        "copy_bytes_per_s": source.numel() * 8 / seconds["copy"],
        "flops_per_s": 2 * 2048**3 / seconds["product"],
    }


def cuda_peak(call: Callable[[], object]) -> float:
    """MiB allocated by a call beyond what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def synchronises(call: Callable[[], object]) -> bool:
    """Whether the host waits for the GPU within a call."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def peak_of_masks(side: str) -> float:
    """MiB by which this process grows within one call, at its peak: for a process of its own."""
    ours, peer = mask_sides()
    call = ours if side == "instseg" else peer
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(line: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


def peaks_of_masks() -> dict[str, float]:
    """Both sides, each in a fresh process."""
    return {
        side: float(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.ops", "--peak-of", side],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for side in ("instseg", "torchvision")
    }


if __name__ == "__main__":
    main()
