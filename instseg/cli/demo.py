"""`instseg demo`: the whole path in one command, on generated data."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from instseg.cli.common import run
from instseg.cli.train import train
from instseg.config.build import (
    build_coco_evaluator,
    build_device,
    build_val_loader,
    has_masks,
    read_val_index,
)
from instseg.config.composition import escape_variables
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import load_trained
from instseg.data.dataset import DetectionDataset
from instseg.data.index import CocoIndex
from instseg.data.sampling import SampleKey
from instseg.data.synthetic import generate_shapes
from instseg.data.transforms import Compose
from instseg.engine.evaluate import evaluate
from instseg.evaluation.report import category_table, summary_lines, write_scores
from instseg.inference.predictor import Predictor
from instseg.structures import Instances
from instseg.visualization.curves import plot_curves
from instseg.visualization.draw import draw_instances, save_png, side_by_side

_logger = logging.getLogger(__name__)

_PICTURE_SCALE = 2
_MAX_OBJECTS = 4


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Generate pictures of shapes, train a small Mask R-CNN on them from scratch, "
        "score it in COCO mAP and draw what it sees. Run again after an interruption, it goes on.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/demo/mask_rcnn.yaml"), help="YAML file"
    )
    parser.add_argument("--train-images", type=int, default=2000, help="to generate [2000]")
    parser.add_argument("--val-images", type=int, default=100, help="to generate, held out [100]")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    args = parser.parse_intermixed_args(argv)
    if min(args.train_images, args.val_images) < 1:
        parser.error("--train-images and --val-images must be at least 1")
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    started = time.monotonic()
    counts = {"train": args.train_images, "val": args.val_images}
    folders = {part: args.output / "data" / part for part in counts}
    overrides = [_setting("output", args.output), *args.overrides]
    for part, folder in folders.items():
        overrides.append(_setting(f"data.{part}.annotations", folder / "annotations.json"))
        overrides.append(_setting(f"data.{part}.images", folder / "images"))
    config = load_config(args.config, Config, overrides)
    for seed, (part, folder) in enumerate(folders.items()):
        if not (folder / "annotations.json").is_file():
            _logger.info("drawing %d pictures in %s", counts[part], folder)
            generate_shapes(folder, images=counts[part], seed=seed, max_objects=_MAX_OBJECTS)
    if train(config, resume=True).status == "interrupted":
        return 3
    table = _evaluate(config)
    plot_curves(config.output / "metrics.jsonl", config.output / "curves.png")
    _draw(config)
    print(table)
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes. In {config.output}: ap.txt, curves.png, predictions.png")
    return 0


def _setting(key: str, path: Path) -> str:
    """``key=path`` for `load_config`, whatever characters the path has."""
    return f"{key}={json.dumps(escape_variables(str(path)))}"


def _evaluate(config: Config) -> str:
    """Score the best weights on the held-out pictures; returns what ``ap.txt`` holds."""
    trained = load_trained(config.output / "best.safetensors")
    index = read_val_index(config)
    device = build_device(config)
    scores = evaluate(
        trained.model.to(device),
        build_val_loader(config, index),
        build_coco_evaluator(config, index, trained.class_names),
        device=device,
        amp=config.train.amp,
    )
    write_scores(scores, config.output / "scores.json")
    with (config.output / "ap.txt").open("w") as file:
        console = Console(file=file, width=100)
        for line in summary_lines(scores):
            console.print(line, highlight=False, markup=False)
        console.print(category_table(scores))
    return (config.output / "ap.txt").read_text()


def _draw(config: Config, rows: int = 5) -> None:
    """``predictions.png``: held-out pictures, their ground truth, and the predictions."""
    trained = load_trained(config.output / "best.safetensors")
    predictor = Predictor(trained.model, trained.transforms, build_device(config))
    index = read_val_index(config)
    truth = DetectionDataset(index.records, Compose([]), seed=0, with_masks=has_masks(config))
    pictures = []
    for number in _crowded(index, rows):
        sample = truth[SampleKey(epoch=0, index=number)]
        assert sample is not None
        image = sample.image.permute(1, 2, 0).contiguous().numpy()
        (found,) = predictor([image])
        assert isinstance(sample.target, Instances)
        assert isinstance(found, Instances)
        draw = partial(draw_instances, image, class_names=trained.class_names, scale=_PICTURE_SCALE)
        blank = sample.target[[]]
        pictures.append((draw(blank), draw(sample.target), draw(found, score_threshold=0.5)))
    grid = side_by_side(pictures, ["image", "ground truth", "prediction"])
    save_png(grid, config.output / "predictions.png")


def _crowded(index: CocoIndex, count: int) -> list[int]:
    """The pictures with the most objects: they show the most."""
    counts = index.records.object_counts.tolist()
    return sorted(range(len(counts)), key=lambda i: -counts[i])[:count]
