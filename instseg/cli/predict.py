"""`instseg predict`: draw and save what a trained model sees in images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from rich.progress import track

from instseg.cli.common import CONSOLE, image_files, run
from instseg.config.build import find_device
from instseg.config.trained import load_trained
from instseg.data.image_io import read_image
from instseg.evaluation.results import instances_to_results, write_results
from instseg.inference.predictor import Predictor
from instseg.visualization.draw import draw_instances, save_png


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Detect the objects in images: one picture for each image, results.json in "
        "COCO's format, and images.json, which says what image each image_id is.",
        epilog="example:\n  predict.py --weights runs/demo/best.safetensors photos/ --output out/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="weights of train_net.py")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument("--score", type=float, default=0.5, help="draw from this score on [0.5]")
    parser.add_argument("--device", help="such as cuda or cpu [a GPU where there is one]")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    args = parser.parse_intermixed_args(argv)
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    paths = list(dict.fromkeys(image_files(args.images)))
    if not paths:
        raise FileNotFoundError(f"no images in {', '.join(map(str, args.images))}")
    device = find_device(args.device, "--device")
    pictures = _picture_paths(paths, args.output)
    trained = load_trained(args.weights)
    predictor = Predictor(trained.model, trained.transforms, device)
    category_ids = [c["id"] for c in trained.categories]
    args.output.mkdir(parents=True, exist_ok=True)
    records, images = [], []
    for number, path in enumerate(track(paths, "predicting", console=CONSOLE, transient=True), 1):
        image = read_image(path)
        (found,) = predictor([image])
        records += instances_to_results(number, found, category_ids)
        images.append(
            {
                "id": number,
                "file_name": str(path),
                "height": image.shape[0],
                "width": image.shape[1],
            }
        )
        drawn = draw_instances(image, found, trained.class_names, score_threshold=args.score)
        save_png(drawn, pictures[path])
    write_results(records, args.output / "results.json")
    listing = {"images": images, "categories": trained.categories}
    (args.output / "images.json").write_text(json.dumps(listing, indent=1) + "\n")
    print(
        f"{len(records)} detections in {len(paths)} images: pictures and results in {args.output}"
    )
    return 0


def _picture_paths(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """One PNG for each image; equal names from different folders get a number.

    Raises:
        FileExistsError: a picture would be written over one of the images.
    """
    images = {path.resolve() for path in paths}
    taken: set[Path] = set()
    pictures = {}
    for path in paths:
        names = (f"{path.stem}_{i}.png" if i else f"{path.stem}.png" for i in count())
        picture = next(folder / name for name in names if folder / name not in taken)
        if picture.resolve() in images:
            raise FileExistsError(f"{picture} is one of the images: choose another --output")
        taken.add(picture)
        pictures[path] = picture
    return pictures
