"""VGG Image Annotator 1 and 2: one JSON file for all images.

Source: https://www.robots.ox.ac.uk/~vgg/software/via/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from instseg.data.formats.common import (
    Coco,
    CocoBuilder,
    FormatError,
    Progress,
    Record,
    ellipse_polygon,
    read_json,
    rectangle_polygon,
    refuse_shape,
    relative_path,
    tracked,
)
from instseg.data.image_io import image_size


def read(
    file: Path,
    images: Path,
    *,
    attribute: str | None = None,
    category: str | None = None,
    categories: Sequence[str] | None = None,
    skip_shapes: Collection[str] = (),
    on_progress: Progress | None = None,
) -> Coco:
    """Read a saved project (``_via_img_metadata``) or exported annotations.

    Polygons stay as they are; a rectangle becomes the polygon of its corners, a circle or ellipse
    a polygon within 0.1 pixel of it (`ellipse_polygon`). A polyline is open, so it is refused.

    Args:
        file: the JSON file.
        images: the image root that the file names are relative to.
        attribute: the region attribute that holds the class, or
        category: the one class of all regions; exactly one of the two is given.
        categories: the class names in the order of their ids; None sorts the names met.
        skip_shapes: shape types to leave out, such as ``"point"`` and ``"polyline"``.
        on_progress: called with (images done, images in all).

    Returns:
        A COCO dictionary of polygons.

    Raises:
        ValueError: both or none of ``attribute`` and ``category`` are given.
        FormatError: a file that is not VIA's, an image path out of ``images``, a region of another
            shape or without class.
        ImageError: an image whose size cannot be read.
    """
    if (attribute is None) == (category is None):
        raise ValueError("give either the attribute that holds the class, or one category for all")
    builder = CocoBuilder([category] if category is not None and categories is None else categories)
    for entry in tracked(sorted(_entries(file), key=_file_name), on_progress):
        name = _file_name(entry)
        image = Record(file, f"image '{name}'")
        image_name = relative_path(image, name)
        image_id = builder.add_image(image, image_name, image_size(images / image_name))
        for index, region in enumerate(_regions(image, entry)):
            record = Record(file, f"image '{name}': regions[{index}]")
            shape = _member(record, region, "shape_attributes")
            kind = str(shape.get("name"))
            if kind in skip_shapes:
                continue
            if kind not in _POLYGONS:
                raise refuse_shape(record, kind, _POLYGONS)
            label = category if attribute is None else _class(record, region, attribute)
            builder.add_polygons(record, image_id, str(label), [_POLYGONS[kind](record, shape)])
    return builder.build()


def _entries(file: Path) -> list[dict[str, Any]]:
    content = read_json(file)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = list(content.values()) if isinstance(content, dict) else []
    if not entries or not all(
        isinstance(entry, dict) and isinstance(entry.get("filename"), str) and "regions" in entry
        for entry in entries
    ):
        raise FormatError(
            file,
            "not a VIA 2 project or its exported annotations: every image needs "
            "'filename' and 'regions'",
        )
    return entries


def _file_name(entry: dict[str, Any]) -> str:
    return str(entry["filename"])


def _regions(record: Record, entry: dict[str, Any]) -> list[Any]:
    regions = entry["regions"]
    if isinstance(regions, dict):  # VIA 1 numbers them
        regions = list(regions.values())
    if not isinstance(regions, list):
        raise record.error("'regions' must be a list")
    return regions


def _member(record: Record, region: object, key: str) -> dict[str, Any]:
    member = region.get(key) if isinstance(region, dict) else None
    if not isinstance(member, dict):
        raise record.error(f"a region must be a map with '{key}'")
    return member


def _class(record: Record, region: object, attribute: str) -> str:
    attributes = _member(record, region, "region_attributes")
    value = attributes.get(attribute)
    if not isinstance(value, str) or not value.strip():
        raise record.error(
            f"attribute '{attribute}' holds no class but {value!r}; this region has "
            f"{list(attributes)}"
        )
    return value.strip()


def _floats(record: Record, shape: dict[str, Any], *keys: str) -> list[float]:
    missing = [key for key in keys if key not in shape]
    if missing:
        raise record.error(f"a {shape['name']} needs {', '.join(keys)}; {missing[0]} is missing")
    return record.numbers([shape[key] for key in keys])


def _polygon(record: Record, shape: dict[str, Any]) -> list[float]:
    xs = record.numbers(shape.get("all_points_x"))
    ys = record.numbers(shape.get("all_points_y"))
    if len(xs) != len(ys):
        raise record.error(f"{len(xs)} values in all_points_x but {len(ys)} in all_points_y")
    return [coordinate for point in zip(xs, ys, strict=True) for coordinate in point]


def _rect(record: Record, shape: dict[str, Any]) -> list[float]:
    x, y, width, height = _floats(record, shape, "x", "y", "width", "height")
    return rectangle_polygon(x, y, x + width, y + height)


def _circle(record: Record, shape: dict[str, Any]) -> list[float]:
    cx, cy, radius = _floats(record, shape, "cx", "cy", "r")
    return ellipse_polygon((cx, cy), (radius, radius))


def _ellipse(record: Record, shape: dict[str, Any]) -> list[float]:
    cx, cy, rx, ry = _floats(record, shape, "cx", "cy", "rx", "ry")
    # Versions before 2.0.8 cannot turn an ellipse and write no theta.
    angle = record.numbers([shape.get("theta", 0.0)])[0]
    return ellipse_polygon((cx, cy), (rx, ry), angle)


_POLYGONS: dict[str, Callable[[Record, dict[str, Any]], list[float]]] = {
    "polygon": _polygon,
    "rect": _rect,
    "circle": _circle,
    "ellipse": _ellipse,
}
