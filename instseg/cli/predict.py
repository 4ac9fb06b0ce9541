"""`instseg predict`: draw and save what a trained model sees in images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import nn

from instseg.cli.common import CONSOLE, image_files, run
from instseg.cli.prediction_files import output_stems, with_pages
from instseg.cli.prediction_writers import make_writer
from instseg.config.build import find_device
from instseg.config.loader import ConfigError
from instseg.config.trained import TrainedModel, load_trained
from instseg.evaluation.json_file import write_json
from instseg.inference.predictor import Predictor, TiledModel
from instseg.inference.tiling import OnTile
from instseg.models.semantic.segmenter import SemanticSegmenter

_EPILOG = """\
examples:
  predict.py --weights runs/demo/best.safetensors photos/ --output out/
  predict.py --weights runs/isbi2012/unet/final.safetensors test-volume.tif --output out/
  predict.py --weights unet.safetensors --tile 1024 slide.tif

For each image NAME it writes NAME.png, what was found drawn on it. Beside these:
- models of objects: results.json, in COCO's format;
- models of class maps: NAME_labels.png, each pixel its class, as "values" in images.json names
  them; where classes may overlap NAME_labels_0.png and so on, 1 where a pixel is of the class.
NAME.png of image to image is the picture made. images.json says what image each image_id is.
A TIFF that is a stack of images is predicted page by page, as NAME_page0 and so on.
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Find the objects in images or the classes of their pixels, or make other "
        "pictures of them, with the weights of any trained model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="weights of train_net.py")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument(
        "--score", type=float, default=0.5, help="draw objects from this score on [0.5]"
    )
    parser.add_argument(
        "--tile", type=int, help="predict class maps in windows of this side in pixels: large "
        "images need little memory so"
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, help="least probability of a class of class maps [the config's]"
    )
    parser.add_argument("--device", help="such as cuda or cpu [a GPU where there is one]")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    args = parser.parse_intermixed_args(argv)
    if args.tile is not None and args.tile < 1:
        parser.error(f"--tile must be at least 1 pixel, got {args.tile}")
    if args.threshold is not None and not 0 < args.threshold < 1:
        parser.error(f"--threshold must be between 0 and 1, got {args.threshold}")
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    files = list(dict.fromkeys(image_files(args.images)))
    if not files:
        raise FileNotFoundError(f"no images in {', '.join(map(str, args.images))}")
    device = find_device(args.device, "--device")
    trained = load_trained(args.weights)
    if args.threshold is not None:
        if not isinstance(trained.model, SemanticSegmenter):
            raise ConfigError("--threshold is for models of class maps; --score is for objects")
        trained.model.threshold = args.threshold
    images = list(with_pages(files, trained.image_channels))
    writer = make_writer(trained, args.output, args.score)
    stems = output_stems(images, args.output, writer.endings)
    entries = []
    with Progress(console=CONSOLE, transient=True) as bar:
        task = bar.add_task("predicting", total=len(images))
        model: nn.Module = trained.model
        if args.tile is not None:
            model = _tiled(trained, args.tile, _tile_progress(bar))
        predictor = Predictor(model, trained.transforms, device)
        args.output.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(images, start=1):
            image = trained.read_image(path)
            (found,) = predictor([image])
            height, width = image.shape[:2]
            entry = {"id": number, "file_name": str(path), "height": height, "width": width}
            entries.append(entry | writer.add(number, image, found, stems[path]))
            bar.advance(task)
    found_in_all = writer.finish()
    write_json({"images": entries} | writer.listing, args.output / "images.json", indent=1)
    print(f"{found_in_all} in {len(images)} images: pictures and results in {args.output}")
    return 0


def _tiled(trained: TrainedModel, tile: int, on_tile: OnTile) -> TiledModel:
    if not isinstance(trained.model, SemanticSegmenter):
        raise ConfigError("--tile is for models that predict class maps, or objects out of them")
    try:
        keep_scores = bool(trained.config.transforms)  # maps are resized back by them
        return TiledModel(trained.model, tile, keep_scores=keep_scores, on_tile=on_tile)
    except ValueError as error:
        raise ConfigError(f"--tile: {error}") from None


def _tile_progress(bar: Progress) -> OnTile:
    task = bar.add_task("tiles of the image", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
