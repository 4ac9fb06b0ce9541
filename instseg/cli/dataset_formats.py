"""The formats of `instseg dataset convert`: their options and readers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from instseg.data.formats import instance_png, labelme, semantic_png, via, voc, yolo
from instseg.data.formats.common import Coco
from instseg.data.formats.mask_values import Value

OnProgress = Callable[[int, int], None]


def add_formats(formats: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """A parser for each format; each sets ``read``, which takes the arguments and a progress."""
    instance = _add_format(
        formats, "instance-png", _read_instance_png, "label images: pixel value = instance id"
    )
    instance.add_argument("images", type=Path, help="folder of images: the image root")
    instance.add_argument("masks", type=Path, help="folder of label images")
    instance.add_argument("--mask-suffix", default="", help="a.jpg has the mask a<SUFFIX>.png")
    instance.add_argument("--category", default="object", help="name of the one class")

    semantic = _add_format(
        formats,
        "semantic-png",
        _read_semantic_png,
        "semantic masks: pixel value or colour = class; folders, or two TIFF stacks",
    )
    semantic.add_argument("images", type=Path, help="folder of images: the image root; or a stack")
    semantic.add_argument("masks", type=Path, help="folder of masks; or a stack")
    semantic.add_argument("--mask-suffix", default="", help="a.jpg has the mask a<SUFFIX>.png")
    semantic.add_argument(
        "--classes", nargs="+", type=_named_value, metavar="NAME=VALUE",
        help="pixel value, or colour NAME=R,G,B, of each class [finds masks of 0, 1 or 0, 255]",
    )  # fmt: skip
    semantic.add_argument(
        "--background", type=_value, metavar="VALUE", help="of no class [0, where that is no class]"
    )
    semantic.add_argument(
        "--ignore", type=_value, metavar="VALUE", help="of unknown pixels [255, where it is free]"
    )
    semantic.add_argument(
        "--category", default="foreground", help="class of masks without --classes"
    )

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
    parser.set_defaults(read=read)
    return parser


def _read_instance_png(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    return instance_png.read(
        args.images,
        args.masks,
        category=args.category,
        mask_suffix=args.mask_suffix,
        on_progress=on_progress,
    )


def _read_semantic_png(args: argparse.Namespace, on_progress: OnProgress) -> Coco:
    classes = None
    if args.classes is not None:
        classes = dict(args.classes)
        if len(classes) < len(args.classes):
            names = ", ".join(name for name, _ in args.classes)
            raise ValueError(f"--classes must name each class once, got {names}")
    return semantic_png.read(
        args.images,
        args.masks,
        classes=classes,
        background=args.background,
        ignore=args.ignore,
        mask_suffix=args.mask_suffix,
        category=args.category,
        on_progress=on_progress,
    )


def _value(text: str) -> Value:
    """``7`` as a value, ``128,64,0`` as a colour."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a value nor a colour r,g,b")
    return numbers if len(numbers) == 3 else numbers[0]


def _named_value(text: str) -> tuple[str, Value]:
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is neither name=value nor name=r,g,b")
    return name, _value(value)


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
