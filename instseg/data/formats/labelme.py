"""LabelMe: one JSON file of shapes for each image.

Source: https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from instseg.data.formats.common import (
    Coco,
    CocoBuilder,
    Progress,
    Record,
    ellipse_polygon,
    list_files,
    read_json,
    rectangle_polygon,
    refuse_shape,
    relative_path,
    tracked,
)
from instseg.data.image_io import image_size
from instseg.structures.geometry import Size

Points = list[tuple[float, float]]


def read(
    folder: Path,
    *,
    categories: Sequence[str] | None = None,
    skip_shapes: Collection[str] = (),
    on_progress: Progress | None = None,
) -> Coco:
    """Read every ``*.json`` under a folder, which is the image root as well.

    Polygons stay as they are; a rectangle becomes the polygon of its corners, a circle a polygon
    within 0.1 pixel of it (`ellipse_polygon`). Shapes of one label and one ``group_id`` are the
    parts of one instance. An image's size is what the file declares (``imageHeight``,
    ``imageWidth``), for the check to compare with the image, or the image's own where the
    file declares none.

    Args:
        folder: holds the JSON files and the images that their ``imagePath`` points to, at any
            depth.
        categories: the class names in the order of their ids; None sorts the labels met.
        skip_shapes: shape types to leave out, such as ``"point"`` and ``"line"``.
        on_progress: called with (files done, files in all).

    Returns:
        A COCO dictionary of polygons.

    Raises:
        FormatError: a file that is not LabelMe's, an image path out of the folder, or a shape of
            another type.
        ImageError: an image whose size is needed and cannot be read.
    """
    builder = CocoBuilder(categories)
    for name in tracked(list_files(folder, {".json"}), on_progress):
        record = Record(folder / name)
        content = read_json(record.file)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise record.error("not a LabelMe file: it has no list 'shapes'")
        if not isinstance(content.get("imagePath"), str):
            raise record.error("'imagePath' is missing")
        # imagePath is relative to the JSON file, file_name to the folder.
        image_name = relative_path(record, os.path.join(name.parent, content["imagePath"]))
        size = _declared_size(content) or image_size(folder / image_name)
        image_id = builder.add_image(record, image_name, size)
        for instance, label, polygons in _instances(record.file, content["shapes"], skip_shapes):
            builder.add_polygons(instance, image_id, label, polygons)
    return builder.build()


def _declared_size(content: dict[str, Any]) -> Size | None:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


def _instances(
    file: Path, shapes: list[Any], skip_shapes: Collection[str]
) -> list[tuple[Record, str, list[list[float]]]]:
    """(first shape, label, flat polygons) of every instance, in the order of first shapes."""
    found: dict[tuple[str, object], tuple[Record, str, list[list[float]]]] = {}
    for index, shape in enumerate(shapes):
        record = Record(file, f"shapes[{index}]")
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise record.error("a shape must be a map with a 'label'")
        kind = str(shape.get("shape_type") or "polygon")  # absent in files of LabelMe 3
        if kind in skip_shapes:
            continue
        if kind not in _POLYGONS:
            raise refuse_shape(record, kind, _POLYGONS)
        group = shape.get("group_id")
        if not isinstance(group, int | str | None):
            raise record.error(f"'group_id' must be a number, got {group!r}")
        label = shape["label"]
        key = (label, ("alone", index) if group is None else group)
        polygon = _POLYGONS[kind](record, _points(record, shape.get("points")))
        found.setdefault(key, (record, label, []))[2].append(polygon)
    return list(found.values())


def _points(record: Record, points: object) -> Points:
    if not isinstance(points, list):
        raise record.error("'points' must be a list of [x, y]")
    pairs = [record.numbers(point) for point in points]
    if not all(len(pair) == 2 for pair in pairs):
        raise record.error("'points' must be a list of [x, y]")
    return [(x, y) for x, y in pairs]


def _polygon(_: Record, points: Points) -> list[float]:
    return [coordinate for point in points for coordinate in point]


def _rectangle(record: Record, points: Points) -> list[float]:
    if len(points) != 2:
        raise record.error(f"a rectangle has two opposite corners, got {len(points)} points")
    return rectangle_polygon(*points[0], *points[1])


def _circle(record: Record, points: Points) -> list[float]:
    if len(points) != 2:
        raise record.error(f"a circle has its centre and a point on it, got {len(points)} points")
    radius = math.dist(*points)
    return ellipse_polygon(points[0], (radius, radius))


_POLYGONS: dict[str, Callable[[Record, Points], list[float]]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
}
