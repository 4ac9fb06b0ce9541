"""The ops of instseg against torchvision's: alternating calls in one process, medians, fp32.

    python -m benchmarks.ops [--rounds 15] [--only roi_align nms ...]

Prints a table of times, ratios and floors, and writes results/ops_<device>.json. A floor is the
time that the op's least traffic with memory takes at this machine's measured copy rate, or its
arithmetic at the measured multiply-add rate, whichever is longer: see `docs/ops.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.ops as tv

from benchmarks.common import alternate, summary
from instseg import ops


@dataclass
class Case:
    """One line of the table.

    Args:
        name: what is measured.
        ours: the call of instseg.
        peer: torchvision's.
        wanted: the ratio aimed at.
        bytes: least traffic with memory.
        agree: whether results are compared before timing.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    wanted: float
    bytes: float = 0.0


def random_boxes(n: int, height: float, width: float, seed: int, low=16.0, high=512.0):
    """Sides even in the logarithm between ``low`` and ``high`` px, inside the image."""
    generator = torch.Generator().manual_seed(seed)
    side = low * (high / low) ** torch.rand(n, 2, generator=generator)
    room = (torch.tensor([width, height]) - side).clamp(min=0)
    corner = torch.rand(n, 2, generator=generator) * room
    return torch.cat([corner, corner + side], dim=1)


def rois_of(n: int, height: float, width: float, seed: int = 0) -> torch.Tensor:
    """Rows (batch index, box) for two images."""
    boxes = random_boxes(n, height, width, seed)
    return torch.cat([(torch.arange(n) % 2)[:, None].float(), boxes], dim=1)


def roi_align_cases(device: torch.device) -> list[Case]:
    feature = torch.randn(2, 256, 200, 336, device=device)
    last = feature.to(memory_format=torch.channels_last)
    rois = rois_of(1000, 800, 1344).to(device)
    out = 1000 * 256 * 49 * 4
    maps = feature.numel() * 4

    def call(op: Callable[..., torch.Tensor], x: torch.Tensor, sampling: int):
        return lambda: op(x, rois, (7, 7), 0.25, sampling, True)

    grad = torch.randn(1000, 256, 7, 7, device=device)

    def backward(op: Callable[..., torch.Tensor], x: torch.Tensor):
        x = x.detach().requires_grad_()
        pooled = op(x, rois, (7, 7), 0.25, 2, True)
        laid_out = grad.contiguous(memory_format=_layout(pooled))
        return lambda: torch.autograd.grad(pooled, x, laid_out, retain_graph=True)

    ours, peer = ops.roi_align, tv.roi_align
    nhwc, nchw = "channels_last", "NCHW"
    return [
        Case(f"roi_align {nhwc}", call(ours, last, 2), call(peer, last, 2), 12, maps + out),
        Case(f"roi_align {nchw}", call(ours, feature, 2), call(peer, feature, 2), 6, maps + out),
        Case(
            f"roi_align {nhwc}, adaptive", call(ours, last, 0), call(peer, last, 0), 10, maps + out
        ),
        Case(
            f"roi_align backward {nhwc}", backward(ours, last), backward(peer, last), 8, maps + out
        ),
        Case(
            f"roi_align backward {nchw}",
            backward(ours, feature),
            backward(peer, feature),
            8,
            maps + out,
        ),
    ]


def multiscale_cases(device: torch.device) -> list[Case]:
    strides = (4, 8, 16, 32)
    features = [torch.randn(2, 256, 800 // s, 1344 // s, device=device) for s in strides]
    boxes = [random_boxes(512, 800, 1344, seed).to(device) for seed in (0, 1)]
    pooler = tv.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(i): f for i, f in enumerate(features)}
    cases = []
    for layout, wanted in ((torch.channels_last, 10), (torch.contiguous_format, 10)):
        laid = [f.contiguous(memory_format=layout) for f in features]
        named = {str(i): f for i, f in enumerate(laid)}
        text = "channels_last" if layout == torch.channels_last else "NCHW"
        cases.append(
            Case(
                f"multiscale_roi_align {text}",
                lambda laid=laid: ops.multiscale_roi_align(laid, boxes, 7, strides, 2, False),
                lambda named=named: pooler(named, boxes, [(800, 1344)] * 2),
                wanted,
                sum(f.numel() for f in features) * 4 + 1024 * 256 * 49 * 4,
            )
        )
    return cases


def nms_cases(device: torch.device) -> list[Case]:
    cases = []
    for count, wanted in ((1000, 3), (5000, 10), (20000, 30)):
        generator = torch.Generator().manual_seed(count)
        scores = torch.rand(count, generator=generator).to(device)
        spread = random_boxes(count, 800, 1344, count).to(device)
        # 50 boxes around each of a few objects, as an RPN gives them.
        objects = random_boxes(count // 50, 800, 1344, 1, 32, 400).repeat_interleave(50, dim=0)
        sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
        crowded = (objects + torch.randn(count, 4, generator=generator) * 0.1 * sides).to(device)
        for name, boxes in (("random", spread), ("overlapping", crowded)):
            cases.append(
                Case(
                    f"nms {count}, {name}",
                    lambda boxes=boxes, scores=scores: ops.nms(boxes, scores, 0.7),
                    lambda boxes=boxes, scores=scores: tv.nms(boxes, scores, 0.7),
                    wanted,
                    count * 28,
                )
            )
    return cases


def _layout(x: torch.Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


GROUPS = {"roi_align": roi_align_cases, "multiscale": multiscale_cases, "nms": nms_cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for group in args.only:
        for case in GROUPS[group](device):
            seconds = alternate(
                {"instseg": case.ours, "torchvision": case.peer}, rounds=args.rounds
            )
            row = {
                "case": case.name,
                **summary(seconds, "instseg", "torchvision"),
                "wanted": case.wanted,
            }
            rows.append(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
