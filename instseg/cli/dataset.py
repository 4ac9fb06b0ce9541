"""`instseg dataset`: convert annotations to COCO JSON, check such a file, find anchors for it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instseg.data.anchors import box_sizes, kmeans_anchors, mean_best_iou
from instseg.data.check import check_coco, format_report, has_errors
from instseg.data.coco import load_coco
from instseg.data.folds import take_fold
from instseg.data.formats import instance_png, labelme, via, voc, write_coco, yolo
from instseg.data.formats.common import Coco
from instseg.data.index import screen

OnProgress = Callable[[int, int], None]

_EXAMPLES = """\
examples:
  dataset.py convert instance-png images/ masks/ --mask-suffix _mask --category person \\
      --folds 5 --fold 0 --part train --output train.json
  dataset.py convert voc VOC2007/ --split trainval --output trainval.json
  dataset.py convert yolo images/train/ labels/train/ --names data.yaml --output train.json
  dataset.py convert labelme photos/ --skip-shapes point line --output photos.json
  dataset.py convert via project.json images/ --attribute class --output all.json
  dataset.py check train.json --images images/
  dataset.py anchors --annotations train.json --letterbox 416 416 --number 5

exit status: 0 done, 1 the check found errors, 2 unusable arguments or files
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` (None: the process's arguments) and return its exit status."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
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
    with _progress("reading") as on_progress:
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
    with _progress("checking") as on_progress:
        defects = check_coco(args.annotations, args.images, on_progress=on_progress)
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


@contextmanager
def _progress(what: str) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _read_instance_png(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    return instance_png.read(
        args.images,
        args.masks,
        category=args.category,
        mask_suffix=args.mask_suffix,
        on_progress=on_progress,
    )


def _read_voc(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    return voc.read(
        args.root,
        split=args.split,
        categories=args.categories,
        keep_difficult=not args.drop_difficult,
        on_progress=on_progress,
    )


def _read_yolo(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    names = args.names
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        names = Path(names[0])
    return yolo.read(args.images, args.labels, names=names, on_progress=on_progress)


def _read_labelme(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    return labelme.read(
        args.folder,
        categories=args.categories,
        skip_shapes=args.skip_shapes,
        on_progress=on_progress,
    )


def _read_via(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    return via.read(
        args.file,
        args.images,
        attribute=args.attribute,
        category=args.category,
        categories=args.categories,
        skip_shapes=args.skip_shapes,
        on_progress=on_progress,
    )


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert annotations to COCO JSON, check such a file, or find anchors for it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{convert,check,anchors}")
    convert = commands.add_parser("convert", help="write annotations of another format as COCO")
    _add_formats(convert.add_subparsers(required=True, metavar="FORMAT"))
    check = commands.add_parser("check", help="list every defect of a COCO file and its images")
    check.add_argument("annotations", type=Path, help="the COCO JSON file")
    check.add_argument("--images", type=Path, required=True, help="the image root")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the defects there too")
    check.set_defaults(run=_check)
    _add_anchors(commands.add_parser("anchors", help="cluster the boxes of a COCO file"))
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


def _add_formats(formats: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    instance = _add_format(
        formats, "instance-png", _read_instance_png, "label images: pixel value = instance id"
    )
    instance.add_argument("images", type=Path, help="folder of images: the image root")
    instance.add_argument("masks", type=Path, help="folder of label images")
    instance.add_argument("--mask-suffix", default="", help="a.jpg has the mask a<SUFFIX>.png")
    instance.add_argument("--category", default="object", help="name of the one class")

    voc_xml = _add_format(formats, "voc", _read_voc, "Pascal VOC XML; the image root is JPEGImages")
    voc_xml.add_argument("root", type=Path, help="folder that holds Annotations and JPEGImages")
    voc_xml.add_argument("--split", help="read only ImageSets/Main/<SPLIT>.txt")
    voc_xml.add_argument("--drop-difficult", action="store_true", help="leave these objects out")

    yolo_txt = _add_format(formats, "yolo", _read_yolo, "YOLO txt: boxes and polygons")
    yolo_txt.add_argument("images", type=Path, help="folder of images: the image root")
    yolo_txt.add_argument("labels", type=Path, help="folder of label files")
    yolo_txt.add_argument(
        "--names", nargs="+", required=True, help="data.yaml, or the class names in order"
    )

    labelme_json = _add_format(formats, "labelme", _read_labelme, "LabelMe JSON")
    labelme_json.add_argument("folder", type=Path, help="JSON files and images: the image root")

    via_json = _add_format(formats, "via", _read_via, "VGG Image Annotator JSON")
    via_json.add_argument("file", type=Path, help="saved project or exported annotations")
    via_json.add_argument("images", type=Path, help="folder of images: the image root")
    source = via_json.add_mutually_exclusive_group(required=True)
    source.add_argument("--attribute", help="region attribute that holds the class")
    source.add_argument("--category", help="the one class of all regions")

    for parser in (voc_xml, labelme_json, via_json):
        parser.add_argument(
            "--categories", nargs="+", help="class names in the order of their ids [sorted]"
        )
    for parser in (labelme_json, via_json):
        parser.add_argument(
            "--skip-shapes", nargs="+", default=[], metavar="TYPE", help="shape types to leave out"
        )


def _add_format(
    formats: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    read: Callable[[argparse.Namespace, OnProgress], Coco],
    about: str,
) -> argparse.ArgumentParser:
    parser = formats.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("--output", type=Path, required=True, help="the COCO JSON file to write")
    fold = parser.add_argument_group(
        "folds", "keep one part: sorted by file name, image i is val in fold i % FOLDS"
    )
    fold.add_argument("--folds", type=int, help="number of folds")
    fold.add_argument("--fold", type=int, help="which fold, from 0")
    fold.add_argument("--part", choices=["train", "val"], help="which part of it")
    parser.set_defaults(run=_convert, read=read)
    return parser
