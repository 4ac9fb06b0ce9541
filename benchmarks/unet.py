"""U-Net (padded, 512 x 512) against segmentation_models_pytorch's of the same encoder and weights.

    python -m benchmarks.unet [--rounds 9] [--encoders 34 18] [--batches 1 4] [--device cpu]

Both sides have the same weights and compute the same function, which is checked first. One call of
each side in turn, in one process: inference (``eval``, normalised batch to logits), and a step of
training (cross-entropy, backward, SGD with momentum). "instseg folded" is inference after
`fold_batch_norm`. Settings: fp32 with the default memory layout and with channels last, bf16 by
autocast with channels last. A speedup is the median of the pairs' ratios; "best" compares each
side's fastest setting of one precision. The floor is the number of operations over the rate of
single 3x3 convolutions of 256 channels here. Prints a table and writes results/unet.json, or
unet_gpu.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import alternate, summary, write
from instseg.models.backbones.resnet import ResNet
from instseg.models.fuse import fold_batch_norm
from instseg.models.semantic.unet import unet

PEER = "smp"
CLASSES = 2
SIZE = 512
SETTINGS: dict[str, tuple[torch.dtype | None, torch.memory_format]] = {
    "fp32": (None, torch.contiguous_format),
    "fp32 channels_last": (None, torch.channels_last),
    "bf16 channels_last": (torch.bfloat16, torch.channels_last),
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--encoders", type=int, nargs="+", default=[34, 18], choices=[18, 34])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tasks", nargs="+", default=["inference", "training"])
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    rows, differences = [], {}
    for depth in args.encoders:
        own, peer = pair(depth)
        differences[f"resnet{depth}"] = difference(own, peer)
        print(f"resnet{depth}: largest difference of logits {differences[f'resnet{depth}']:.2e}")
        for row in measure(own.to(device), peer.to(device), args):
            rows.append({"encoder": f"resnet{depth}", **row})
            print(rows[-1], flush=True)
    content = {
        "command": command(args),
        "smp": version("segmentation_models_pytorch"),
        "device": str(device),
        "largest_difference_of_logits": differences,
        "rows": rows,
        "best": list(best(rows)),
    }
    for row in content["best"]:
        print(row)
    print(write("unet" if device.type == "cpu" else "unet_gpu", content))


def command(args: argparse.Namespace) -> str:
    lists = {"encoders": args.encoders, "batches": args.batches, "tasks": args.tasks}
    options = [f"--{name} {' '.join(map(str, values))}" for name, values in lists.items()]
    options += [f"--rounds {args.rounds}", f"--size {args.size}", f"--device {args.device}"]
    return f"python -m benchmarks.unet {' '.join(options)}"


def pair(depth: int) -> tuple[nn.Module, nn.Module]:
    """instseg's U-Net and smp's with the same random weights."""
    peer = smp.Unet(f"resnet{depth}", encoder_weights=None, classes=CLASSES)
    encoder = ResNet(depth, norm="live", freeze_at=0, strides=(2, 4, 8, 16, 32))
    own = unet(encoder, CLASSES)
    own.load_state_dict({own_key(key): value for key, value in peer.state_dict().items()})
    return own, peer


def own_key(key: str) -> str:
    """instseg's name of one of smp's weights."""
    key = key.replace("decoder.blocks.", "decoder.levels.").replace("segmentation_head.0", "head")
    for i in "12" if key.startswith("decoder.") else "":
        key = key.replace(f".conv{i}.0.", f".conv{i}.").replace(f".conv{i}.1.", f".bn{i}.")
    return key


@torch.inference_mode()
def difference(own: nn.Module, peer: nn.Module) -> float:
    """The largest difference of logits, which are of the order of 1.

    Raises:
        RuntimeError: the two are not the same function.
    """
    x = torch.randn(2, 3, 128, 160)
    found = float((own.eval()(x) - peer.eval()(x)).abs().max())
    if found > 1e-3:
        raise RuntimeError(f"logits differ by {found}: this would compare different networks")
    return found


def measure(own: nn.Module, peer: nn.Module, args: argparse.Namespace) -> Iterator[Row]:
    device = next(own.parameters()).device
    for setting, (dtype, layout) in SETTINGS.items():
        rate = convolution_rate(device, dtype)
        models = {PEER: peer.to(memory_format=layout), "instseg": own.to(memory_format=layout)}
        for batch in args.batches:
            x = torch.randn(batch, 3, args.size, args.size, device=device)
            x = x.to(memory_format=layout)
            labels = torch.randint(0, CLASSES, (batch, args.size, args.size), device=device)
            for task in args.tasks:
                if task == "training":
                    sides = {name: trainer(m, x, labels, dtype) for name, m in models.items()}
                else:
                    folded = fold_batch_norm(own).to(memory_format=layout)
                    fast = models | {"instseg folded": folded}
                    sides = {name: predictor(m, x, dtype) for name, m in fast.items()}
                seconds = alternate(sides, rounds=args.rounds)
                floor = count_flops(sides["instseg"]) / rate
                for side in list(sides)[1:]:
                    row = {"task": task, "batch": batch, "setting": setting, "side": side}
                    times = summary({"own": seconds[side], PEER: seconds[PEER]}, "own", PEER)
                    throughput = batch / statistics.median(seconds[side])
                    yield (
                        row
                        | times
                        | {
                            "images_per_second": round(throughput, 2),
                            "floor_ms": round(floor * 1e3, 1),
                        }
                    )


def predictor(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Callable[[], object]:
    @torch.inference_mode()
    def call() -> object:
        model.eval()
        with autocast(x, dtype):
            return model(x)

    return call


def trainer(
    model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype | None
) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def call() -> object:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(x, dtype):
            logits = model(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        return None

    return call


def autocast(x: Tensor, dtype: torch.dtype | None) -> Any:
    return torch.autocast(x.device.type, dtype) if dtype else nullcontext()


def count_flops(call: Callable[[], object]) -> float:
    """Twice the multiplications of convolutions and matrix products, backward too."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def convolution_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations a second of a 3x3 convolution with 256 channels on 64 x 64 pixels."""
    layer = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(4, 256, 64, 64, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = alternate({"conv": lambda: layer(x)}, rounds=15)["conv"]
    return 2 * 256 * 256 * 9 * 4 * 64 * 64 / min(seconds)


def best(rows: list[Row]) -> Iterator[Row]:
    """Each side at its fastest setting of a precision."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        case = (row["encoder"], row["task"], row["batch"], row["setting"].split()[0])
        cases.setdefault(case, []).append(row)
    for case, own in cases.items():
        ours, theirs = (min(row[key] for row in own) for key in ("own_ms", f"{PEER}_ms"))
        names = ("encoder", "task", "batch", "precision")
        times = {"own_ms": ours, f"{PEER}_ms": theirs, "speedup": round(theirs / ours, 3)}
        yield dict(zip(names, case, strict=True)) | times


if __name__ == "__main__":
    main()
