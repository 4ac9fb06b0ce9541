"""Images, their truth and what trained models see in them, side by side.

    python -m benchmarks.semantic_pictures membranes
    python -m benchmarks.semantic_pictures nuclei
    python -m benchmarks.semantic_pictures mask_heads
    python -m benchmarks.semantic_pictures draw --config configs/isbi2012/unet.yaml \
        --weights runs/isbi2012/unet/final.safetensors --output runs/isbi2012/unet/pictures.png

The first three generate data, train on them (when called again they only go on, or only draw) and
write a small picture of held-out images to docs/img: two minutes of two cores each, and for
mask_heads, two models on the demo's data, a quarter of an hour. Settings can be changed at the end,
such as train.epochs=2. "draw" is for any data set and models that are there, of class maps or of
objects; several weights give several columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch

from instseg.cli.common import set_up_logging
from instseg.cli.train import train
from instseg.config.build import build_device, predicts_maps, read_index
from instseg.config.build_maps import build_target
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import load_trained
from instseg.data.dataset import instances_of
from instseg.data.index import CocoIndex
from instseg.data.synthetic import generate_shapes
from instseg.data.synthetic_cells import generate_membranes, generate_nuclei
from instseg.inference.predictor import Predictor
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, SemanticMap
from instseg.visualization.draw import PALETTE, Image, draw_mask, save_png, side_by_side
from instseg.visualization.draw_map import displayable, draw_map

DOCS = Path("docs/img")
MAX_BYTES = 150_000
"""Of a picture in the repository."""


@dataclass(frozen=True)
class Look:
    """How pictures are cut out and enlarged.

    Args:
        rows: images.
        scale: times that they are enlarged.
        crop: side in pixels of the part to show, around the middle of the largest object; None
            shows all.
    """

    rows: int = 2
    scale: int = 1
    crop: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A picture of the docs.

    Args:
        generate: writes a data set to a folder.
        last_file: the last file that it writes there, with the number of images put in.
        images: how many for training and for validation.
        runs: title of the column, configuration and folder of each training; the first one's data
            are generated.
        look: of the picture.
    """

    generate: Callable[..., Any]
    last_file: str
    images: tuple[int, int]
    runs: Sequence[tuple[str, Path, Path]]
    look: Look


_CONFIGS, _RUNS = Path("configs/demo"), Path("runs/pictures")
RECIPES = {
    "membranes": Recipe(
        generate_membranes,
        "masks/{:04d}.png",
        (80, 10),
        [("U-Net", _CONFIGS / "unet_membranes.yaml", _RUNS / "membranes")],
        Look(crop=112, scale=2),
    ),
    "nuclei": Recipe(
        generate_nuclei,
        "masks/{:04d}.png",
        (80, 10),
        [("U-Net and watershed", _CONFIGS / "unet_nuclei.yaml", _RUNS / "nuclei")],
        Look(crop=112, scale=2),
    ),
    "mask_heads": Recipe(
        generate_shapes,
        "annotations.json",
        (2000, 100),
        [
            ("FCN head", _CONFIGS / "mask_rcnn.yaml", _RUNS / "mask_heads/fcn"),
            ("U-Net head", _CONFIGS / "mask_rcnn_unet_head.yaml", _RUNS / "mask_heads/unet"),
        ],
        Look(rows=3, crop=64, scale=3),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for name in RECIPES:
        recipe = commands.add_parser(name)
        recipe.add_argument("overrides", nargs="*", metavar="key.path=value")
    draw = commands.add_parser("draw")
    draw.add_argument("--config", type=Path, required=True)
    draw.add_argument("--weights", type=Path, nargs="+", required=True)
    draw.add_argument("--titles", nargs="+", help="of the columns of --weights")
    draw.add_argument("--output", type=Path, required=True, help="a PNG file")
    draw.add_argument("--rows", type=int, default=4)
    draw.add_argument("--scale", type=int, default=1)
    draw.add_argument("--crop", type=int)
    draw.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_args()
    set_up_logging()
    if args.what != "draw":
        print(make(args.what, RECIPES[args.what], args.overrides))
        return
    config = load_config(args.config, Config, args.overrides)
    titles = args.titles or [path.parent.name for path in args.weights]
    look = Look(args.rows, args.scale, args.crop)
    save_png(picture(config, dict(zip(titles, args.weights, strict=True)), look), args.output)
    print(args.output)


def make(name: str, recipe: Recipe, overrides: Sequence[str]) -> Path:
    """Generate, train and draw; returns the file of the picture."""
    data = recipe.runs[0][2].parent / "data" if len(recipe.runs) > 1 else recipe.runs[0][2] / "data"
    for seed, (part, count) in enumerate(zip(("train", "val"), recipe.images, strict=True)):
        if not (data / part / recipe.last_file.format(count - 1)).is_file():
            recipe.generate(data / part, images=count, seed=seed)
    weights = {}
    for title, path, output in recipe.runs:
        config = load_config(path, Config, [f"output={output}", *_paths(path, data), *overrides])
        train(config, resume=True)
        weights[title] = output / "best.safetensors"
    return save_small(picture(config, weights, recipe.look), DOCS / f"{name}.png")


def _paths(path: Path, data: Path) -> list[str]:
    """Where a configuration's data are, as settings."""
    source = load_config(path, Config, []).data.train
    keys = [key for key in ("images", "masks", "annotations") if hasattr(source, key)]
    names = {"annotations": "annotations.json"}
    return [
        f"data.{part}.{key}={data / part / names.get(key, key)}"
        for part in ("train", "val")
        for key in keys
    ]


def picture(config: Config, weights: dict[str, Path], look: Look) -> Image:
    """The grid: one row for each image, one column for each of ``weights`` by its title."""
    models = [load_trained(path) for path in weights.values()]
    device = build_device(config)
    predictors = [Predictor(model.model, model.transforms, device) for model in models]
    background = any(model.map_background for model in models)
    index = read_index(config.data.val, need_masks=True)
    target = build_target(config, len(index.class_names)) if predicts_maps(config) else None
    rows = []
    for number in _fullest(index, look.rows):
        record = index.records[number]
        image = models[0].read_image(record.path)
        objects = instances_of(record, with_masks=True)
        truth = objects if target is None else target(objects)
        found = [predictor([image])[0] for predictor in predictors]
        shown = displayable(torch.from_numpy(image).permute(2, 0, 1))
        window = _window(objects, look)
        cells = [_drawn(shown, what, look.scale, background) for what in (None, truth, *found)]
        rows.append(tuple(np.ascontiguousarray(cell[window]) for cell in cells))
    return side_by_side(rows, ["image", "truth", *weights])


def _fullest(index: CocoIndex, count: int) -> list[int]:
    """The images with the most objects: they show the most."""
    counts = index.records.object_counts.tolist()
    return sorted(range(len(counts)), key=lambda i: -counts[i])[:count]


def _window(objects: Instances, look: Look) -> tuple[slice, slice]:
    """Rows and columns of the enlarged picture that are shown."""
    if look.crop is None:
        return slice(None), slice(None)
    height, width = objects.image_size
    side = min(height, width, look.crop)
    middle = (width / 2, height / 2)
    if len(objects.labels) > 1:
        x1, y1, x2, y2 = objects.boxes.double().unbind(1)
        largest = int(((x2 - x1) * (y2 - y1)).argmax())
        middle = (float((x1 + x2)[largest] / 2), float((y1 + y2)[largest] / 2))
    left, top = (
        round(min(max(centre - side / 2, 0), length - side))
        for centre, length in zip(middle, (width, height), strict=True)
    )
    s = look.scale
    return slice(top * s, (top + side) * s), slice(left * s, (left + side) * s)


def _drawn(image: Image, what: Any, scale: int, background: bool) -> Image:
    """The enlarged image, with objects or classes drawn on it."""
    size = (scale * image.shape[0], scale * image.shape[1])
    canvas = np.array(cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC))
    if isinstance(what, SemanticMap):
        return draw_map(canvas, what.resized(size), background=background, opacity=0.35)
    if isinstance(what, Instances):
        if what.scores is not None:
            what = what[what.scores >= 0.5]
        codes, labels = instance_rles(what), what.labels.tolist()
        for i in sorted(range(len(codes)), key=lambda i: -rle.area(codes[i])):
            # Objects of one class are told apart by their colours, others by their class.
            colour = PALETTE[(labels[i] if max(labels) else i) % len(PALETTE)]
            draw_mask(canvas, rle.decode(codes[i]), colour, 0.35, max(1, scale // 2))
    return canvas


def save_small(grid: Image, path: Path) -> Path:
    """Write a PNG of all its colours, or of as many as fit into `MAX_BYTES`."""
    save_png(grid, path)
    if path.stat().st_size <= MAX_BYTES:
        return path
    method, dither = PIL.Image.Quantize.MAXCOVERAGE, PIL.Image.Dither.NONE
    for colours in (256, 128, 64, 32):
        reduced = PIL.Image.fromarray(grid).quantize(colours, method, dither=dither)
        reduced.save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return path
    raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: show less of it")


if __name__ == "__main__":
    main()
