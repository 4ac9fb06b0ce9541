"""`instseg dataset`: annotations to COCO JSON; check such a file, find anchors, write shards."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from instseg.cli.common import set_up_logging
from instseg.cli.dataset_formats import add_formats
from instseg.cli.dataset_shards import add_shard
from instseg.cli.progress_bar import progress_bar
from instseg.data.anchors import box_sizes, kmeans_anchors, mean_best_iou
from instseg.data.check import check_coco, format_report, has_errors
from instseg.data.coco import load_coco
from instseg.data.folds import take_fold
from instseg.data.formats import write_coco
from instseg.data.formats.common import Coco
from instseg.data.index import screen

_EXAMPLES = """\
examples:
  dataset.py convert instance-png images/ masks/ --mask-suffix _mask --category person \\
      --folds 5 --fold 0 --part train --output train.json
  dataset.py convert semantic-png images/ masks/ --output cells.json
  dataset.py convert semantic-png images/ masks/ --classes road=1 car=2 --ignore 255 \\
      --output street.json
  dataset.py convert semantic-png images/ masks/ --classes road=128,64,128 car=64,0,128 \\
      --output street.json
  dataset.py convert voc VOC2007/ --split trainval --output trainval.json
  dataset.py convert yolo images/train/ labels/train/ --names data.yaml --output train.json
  dataset.py convert labelme photos/ --skip-shapes point line --output photos.json
  dataset.py convert via project.json images/ --attribute class --output all.json
  dataset.py check train.json --images images/
  dataset.py check stack.json --images images/ --channels 1 --bits 16
  dataset.py anchors --annotations train.json --letterbox 416 416 --number 5
  dataset.py shard train.json --images images/ --output shards/train

exit status: 0 done, 1 the check found errors, 2 unusable arguments or files
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` (None: the process's arguments) and return its exit status."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    set_up_logging()
    try:
        status: int = args.run(args)
    except (ValueError, OSError) as error:  # every reader's error is one of these
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return status


def _convert(args: argparse.Namespace) -> int:
    fold = (args.folds, args.fold, args.part)
    if None in fold and fold != (None, None, None):
        raise ValueError("--folds, --fold and --part belong together: give all three or none")
    if not args.output.parent.is_dir():
        raise ValueError(f"there is no folder {args.output.parent} to write --output to")
    with progress_bar("reading") as on_progress:
        coco: Coco = args.read(args, on_progress)
    if args.folds is not None:
        coco = take_fold(coco, folds=args.folds, index=args.fold, part=args.part)
    write_coco(coco, args.output)
    names = ", ".join(category["name"] for category in coco["categories"])
    print(
        f"{args.output}: {len(coco['images'])} images, {len(coco['annotations'])} objects, "
        f"classes: {names}"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    with progress_bar("checking") as on_progress:
        defects = check_coco(
            args.annotations,
            args.images,
            channels=args.channels,
            bits16="keep" if args.bits == 16 else "scale",
            on_progress=on_progress,
        )
    print(format_report(defects))
    if args.json is not None:
        records = [{**asdict(defect), "severity": defect.severity.value} for defect in defects]
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 1 if has_errors(defects) else 0


def _anchors(args: argparse.Namespace) -> int:
    frame = args.letterbox or args.resize
    if min(frame) < 1:
        raise ValueError(f"height and width must be at least 1, got {frame[0]} {frame[1]}")
    coco = screen(load_coco(args.annotations), source=str(args.annotations)).coco
    sizes = box_sizes(coco, tuple(frame), letterbox=args.letterbox is not None)
    if not len(sizes):
        raise ValueError(f"{args.annotations}: there is no box to cluster")
    anchors = kmeans_anchors(sizes, args.number, seed=args.seed).round(2)
    how = "fitted in" if args.letterbox else "stretched to"
    print(
        f"{len(anchors)} anchors of {len(sizes)} boxes, images {how} {frame[0]} x {frame[1]} "
        f"(height x width): mean best IoU {mean_best_iou(sizes, anchors):.4f}"
    )
    print("width, height in pixels, for a configuration:")
    print(f"anchors: {anchors.tolist()}")
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert annotations to COCO JSON; check such a file, find anchors for it, "
        "write it with its images as shards.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{convert,check,anchors,shard}")
    convert = commands.add_parser("convert", help="write annotations of another format as COCO")
    convert.set_defaults(run=_convert)
    add_formats(convert.add_subparsers(required=True, metavar="FORMAT"))
    check = commands.add_parser("check", help="list every defect of a COCO file and its images")
    check.add_argument("annotations", type=Path, help="the COCO JSON file")
    check.add_argument("--images", type=Path, required=True, help="the image root")
    check.add_argument("--channels", type=int, default=3, help="of the images [3]")
    check.add_argument(
        "--bits", type=int, choices=[8, 16], default=8, help="of the pixels a model will see [8]"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write the defects there too")
    check.set_defaults(run=_check)
    _add_anchors(commands.add_parser("anchors", help="cluster the boxes of a COCO file"))
    add_shard(commands.add_parser("shard", help="write a COCO file and its images as tar shards"))
    return parser


def _add_anchors(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Anchor sizes for a training set: k-means of its boxes' widths and heights with the "
        "distance 1 - IoU (YOLOv2), in pixels of the network's input."
    )
    parser.add_argument("--annotations", type=Path, required=True, help="the COCO JSON file")
    parser.add_argument("--number", type=int, required=True, help="how many anchors")
    frame = parser.add_mutually_exclusive_group(required=True)
    for option, about in (
        ("--letterbox", "the input; images are scaled to fit in it"),
        ("--resize", "the input; images are stretched to it"),
    ):
        frame.add_argument(option, type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=about)
    parser.add_argument("--seed", type=int, default=0, help="of the clusters' starts [0]")
    parser.set_defaults(run=_anchors)
