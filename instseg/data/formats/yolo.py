"""YOLO text files: one object a line, in shares of the image's width and height.

Source: Ultralytics' data set formats (https://docs.ultralytics.com/datasets/).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from instseg.data.formats.common import (
    IMAGE_SUFFIXES,
    Coco,
    CocoBuilder,
    FormatError,
    Progress,
    Record,
    list_files,
    read_text,
    tracked,
)
from instseg.data.image_io import image_size
from instseg.structures.geometry import Size

_TOLERANCE = 0.01
"""How far tools that do not clip may leave 0..1; pixels, written by mistake, go much further."""


def read(
    images: Path,
    labels: Path,
    *,
    names: Sequence[str] | Path,
    on_progress: Progress | None = None,
) -> Coco:
    """Read ``labels/a/b.txt`` for every image ``images/a/b.jpg``.

    A line is ``class cx cy w h``, a box, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon; both may
    stand in one file. An image without label file has no objects.

    Args:
        images: the image root; file names in the result are relative to it.
        labels: folder of the label files.
        names: the class names in order, or the ``data.yaml`` that lists them under ``names``.
        on_progress: called with (images done, images in all).

    Returns:
        A COCO dictionary; the annotations of polygons have a segmentation, those of boxes none.

    Raises:
        FormatError: a line that is neither form, has an unknown class or lies outside the image;
            a label file without image (``classes.txt`` is passed over).
        ImageError: an image whose size cannot be read.
    """
    if isinstance(names, Path):
        names = read_names(names)
    image_names = list_files(images, IMAGE_SUFFIXES)
    _refuse_orphans(labels, {path.with_suffix(".txt") for path in image_names})
    builder = CocoBuilder(names)
    for image_name in tracked(image_names, on_progress):
        file = (labels / image_name).with_suffix(".txt")
        size = image_size(images / image_name)
        image_id = builder.add_image(Record(file), image_name.as_posix(), size)
        lines = read_text(file).splitlines() if file.is_file() else []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                _add_object(builder, Record(file, f"line {number}"), image_id, line, names, size)
    return builder.build()


def read_names(file: Path) -> list[str]:
    """The class names of a ``data.yaml``: a list, or a map from 0, 1, 2, ... to names.

    Raises:
        FormatError: there are none, or the numbers leave gaps.
    """
    text = read_text(file)
    try:
        # Every scalar is the text that stands there: `no` is a name, and there is no tag, merge key
        # or number that could do more than that.
        content: Any = yaml.load(text, yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError) as error:
        raise FormatError(file, f"not YAML ({error})") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if names.keys() != {str(i) for i in range(len(names))}:
            raise FormatError(file, f"'names' must number 0 to {len(names) - 1}: {list(names)}")
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise FormatError(file, "'names' must list the classes")
    if not all(isinstance(name, str) for name in names):
        raise FormatError(file, "'names' must list names alone, no lists or maps")
    if len(set(names)) != len(names):
        raise FormatError(file, f"'names' has one class twice: {names}")
    return names


def _refuse_orphans(labels: Path, expected: set[Path]) -> None:
    orphans = [
        path
        for path in list_files(labels, {".txt"})
        if path not in expected and path.name != "classes.txt"
    ]
    if orphans:
        shown = ", ".join(map(str, orphans[:10]))
        raise FormatError(labels, f"{len(orphans)} label files without an image: {shown}")


def _add_object(
    builder: CocoBuilder,
    record: Record,
    image_id: int,
    line: str,
    names: Sequence[str],
    size: Size,
) -> None:
    index, *fields = line.split()
    # Python refuses to read an integer of thousands of digits.
    if not index.isdecimal() or len(index) > 9 or int(index) >= len(names):
        raise record.error(f"class '{index}' is not a number from 0 to {len(names) - 1}")
    shares = record.numbers(fields)
    if len(shares) < 4 or len(shares) % 2:
        raise record.error(
            "expected 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...', "
            f"got {len(shares)} numbers after the class"
        )
    outside = [share for share in shares if not -_TOLERANCE <= share <= 1 + _TOLERANCE]
    if outside:
        raise record.error(
            f"{outside[0]:g} is not in 0..1: coordinates are shares of the image's size, not pixels"
        )
    height, width = size
    scaled = [share * (height if i % 2 else width) for i, share in enumerate(shares)]
    category = names[int(index)]
    if len(scaled) == 4:
        cx, cy, w, h = scaled
        builder.add_box(record, image_id, category, [cx - w / 2, cy - h / 2, w, h])
    else:
        builder.add_polygons(record, image_id, category, [scaled])
