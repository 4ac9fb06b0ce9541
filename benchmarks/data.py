"""The input side: images that one core reads, resizes and augments in a second, against peers.

    python -m benchmarks.data [--rounds 9]

Generated COCO-like JPEG files with polygons (`benchmarks.data_pictures`) go through four pipelines
in one process with one thread, one after the other in turn: instseg's data set, torchvision's
reference for detection with and without its conversion to float, and a mapper in the style of
detectron2 (`benchmarks.data_peers`). With mask targets, each also makes what the mask head learns
from: 28 x 28 pixels for each of 64 regions. The floor is what no pipeline goes without: decoding
the JPEG, resizing, and writing the planes, from memory, by the fastest functions at hand. Prints
and writes results/data.json.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.transforms.v2 import functional as F

from benchmarks.common import alternate, write
from benchmarks.data_peers import Detectron2Style, Item, TorchvisionReference, items_of
from benchmarks.data_pictures import PHOTO, write_pictures
from instseg.data.dataset import DetectionDataset
from instseg.data.image_io import read_image
from instseg.data.index import build_index
from instseg.data.sampling import SampleKey
from instseg.data.transforms import Compose, RandomHorizontalFlip, ResizeShortestEdge
from instseg.data.transforms.layout import planar
from instseg.ops import mask_targets
from instseg.structures import Instances

REGIONS = 64
MASK_SIZE = 28
MAX_SIZE = 1333


@dataclass(frozen=True)
class Setting:
    """Pictures and the short edges that they are resized to."""

    name: str
    shorts: tuple[int, ...]
    is_photo: bool = False


SETTINGS = (
    Setting("COCO-like, 640 to 800", (640, 672, 704, 736, 768, 800)),
    Setting("COCO-like, 480", (480,)),
    Setting("COCO-like, 320", (320,)),
    Setting("COCO-like, 240", (240,)),
    Setting("photos of 12 megapixels, 800", (800,), is_photo=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=36)
    parser.add_argument("--photos", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        small.mkdir()
        large.mkdir()
        sets = {
            False: (write_pictures(small, args.images), small),
            True: (write_pictures(large, args.photos, sizes=(PHOTO,)), large),
        }
        for setting in SETTINGS:
            rows.append(measure(setting, *sets[setting.is_photo], rounds=args.rounds))
            show(rows[-1])
    command = (
        f"python -m benchmarks.data --rounds {args.rounds} --images {args.images} "
        f"--photos {args.photos}"
    )
    libraries = ("numpy", "opencv-python-headless", "pillow", "pycocotools")
    versions = {name: version(name) for name in libraries} | {"system": platform.platform()}
    print(write("data", {"command": command, "versions": versions, "rows": rows}))


def measure(setting: Setting, coco: dict[str, Any], folder: Path, *, rounds: int) -> dict[str, Any]:
    """Milliseconds of one image by each side, and ratios of each to instseg, round by round."""
    records = build_index(coco, folder, source="generated", need_masks=True).records
    items = items_of(coco, folder)
    shorts, n = list(setting.shorts), len(items)
    files = [np.frombuffer(item.path.read_bytes(), np.uint8) for item in items]
    full, reduced = (_dataset(records, shorts, decode) for decode in ("full", "reduced"))
    torchvision = TorchvisionReference(items, shorts, MAX_SIZE)
    in_bytes = TorchvisionReference(items, shorts, MAX_SIZE, to_float=False)
    detectron2 = Detectron2Style(items, shorts, MAX_SIZE)
    epoch = 0

    def ours(dataset: DetectionDataset, *, targets: bool = False) -> None:
        nonlocal epoch
        epoch += 1
        for i in range(n):
            sample = dataset[SampleKey(epoch, i)]
            if targets and sample is not None:
                _our_targets(sample.target)

    def theirs(pipeline: Any, targets: Callable[[Any], object] | None = None) -> None:
        for i in range(n):
            sample = pipeline[i]
            if targets is not None:
                targets(sample)

    sides: dict[str, Callable[[], object]] = {
        "instseg": lambda: ours(full),
        "torchvision": lambda: theirs(torchvision),
        "torchvision_uint8": lambda: theirs(in_bytes),
        "detectron2_style": lambda: theirs(detectron2),
        "instseg_with_mask_targets": lambda: ours(full, targets=True),
        "torchvision_with_mask_targets": lambda: theirs(torchvision, _their_targets),
        "floor": lambda: [_floor(file, shorts[i % len(shorts)]) for i, file in enumerate(files)],
        "floor_decoding": lambda: [_decode(file) for file in files],
    }
    psnr = [_psnr(item, max(shorts)) for item in items]
    if any(np.isfinite(psnr)):
        sides["instseg_reduced"] = lambda: ours(reduced)
    seconds = alternate(sides, rounds=rounds, warmup=1)

    def ratio(side: str, to: str) -> float:
        pairs = zip(seconds[side], seconds[to], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "setting": setting.name,
        "images": n,
        "objects_per_image": round(len(coco["annotations"]) / n, 2),
        "file_kb": round(float(np.mean([len(file) for file in files])) / 1e3, 1),
        "moved_mb": round(float(np.mean([_moved(item, max(shorts)) for item in items])) / 1e6, 2),
        "ms_per_image": {
            side: round(statistics.median(times) / n * 1e3, 3) for side, times in seconds.items()
        },
        "images_per_second": round(n / statistics.median(seconds["instseg"]), 1),
        "time_over_instseg": {side: ratio(side, "instseg") for side in sides},
        "torchvision_over_instseg_with_mask_targets": ratio(
            "torchvision_with_mask_targets", "instseg_with_mask_targets"
        ),
        "decoded_reduced": round(float(np.mean(np.isfinite(psnr))), 3),
        "psnr_of_reduced_db": _least_and_mean([p for p in psnr if np.isfinite(p)]),
    }


def show(row: dict[str, Any]) -> None:
    """A row as lines of text."""
    print(f"{row['setting']}: {row['file_kb']} kB a file, {row['moved_mb']} MB moved an image")
    for side, milliseconds in row["ms_per_image"].items():
        ratio = row["time_over_instseg"][side]
        print(f"  {side:30s} {milliseconds:9.3f} ms an image, {ratio:6.3f} x instseg's time")
    print(
        f"  with mask targets torchvision takes {row['torchvision_over_instseg_with_mask_targets']}"
        f" x instseg's time; {row['decoded_reduced']:.0%} of the images can be decoded at reduced "
        f"scale, PSNR (least, mean) {row['psnr_of_reduced_db']}",
        flush=True,
    )


def _dataset(records: Any, shorts: list[int], decode: Any) -> DetectionDataset:
    chain = Compose([ResizeShortestEdge(shorts, MAX_SIZE), RandomHorizontalFlip()])
    return DetectionDataset(records, chain, seed=0, with_masks=True, decode=decode)


def _our_targets(target: Any) -> Tensor | None:
    assert isinstance(target, Instances)
    if not len(target):
        return None
    chosen = torch.arange(REGIONS) % len(target)
    assert target.masks is not None
    return mask_targets(target.masks, chosen, target.boxes[chosen], MASK_SIZE)


def _their_targets(sample: tuple[Tensor, dict[str, Tensor]]) -> Tensor | None:
    target = sample[1]
    if not len(target["boxes"]):
        return None
    chosen = torch.arange(REGIONS) % len(target["boxes"])
    return project_masks_on_boxes(target["masks"], target["boxes"][chosen], chosen, MASK_SIZE)


def _decode(file: np.ndarray) -> np.ndarray:
    return cv2.imdecode(file, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _floor(file: np.ndarray, short: int) -> Tensor:
    pixels = _decode(file)
    size = _size(pixels.shape[0], pixels.shape[1], short)
    return planar(F.resize(torch.from_numpy(pixels).permute(2, 0, 1), list(size)))


def _size(height: int, width: int, short: int) -> tuple[int, int]:
    scale = min(short / min(height, width), MAX_SIZE / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _moved(item: Item, short: int) -> int:
    """Bytes that the floor reads and writes: decoded pixels twice, resized ones three times."""
    height, width = _size(item.height, item.width, short)
    return item.path.stat().st_size + 3 * (2 * item.height * item.width + 3 * height * width)


def _psnr(item: Item, short: int) -> float:
    """Of the resized image, decoded at reduced scale against decoded whole; inf where equal."""
    size = _size(item.height, item.width, short)
    whole, reduced = (read_image(item.path, least_size=least) for least in (None, size))
    if whole.shape == reduced.shape:
        return float("inf")
    a, b = (
        F.resize(torch.from_numpy(pixels).permute(2, 0, 1), list(size)).double()
        for pixels in (whole, reduced)
    )
    return float(10 * torch.log10(255**2 / (a - b).square().mean()))


def _least_and_mean(values: list[float]) -> list[float] | None:
    return [round(min(values), 1), round(statistics.mean(values), 1)] if values else None


if __name__ == "__main__":
    main()
