"""What every reader needs: the error, the COCO builder, safe paths, bounded reading, writing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from instseg.data.replacing import replacing
from instseg.ops import rle
from instseg.structures.geometry import Size
from instseg.structures.masks import RLE

Coco = dict[str, Any]
"""A COCO dictionary: ``images``, ``annotations`` and ``categories``."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_MAX_BYTES = 1 << 30
_T = TypeVar("_T")


class FormatError(ValueError):
    """An annotation file that cannot be converted; the message names the file and the record."""

    def __init__(self, file: Path, message: str, record: str = "") -> None:
        super().__init__(": ".join(part for part in (str(file), record, message) if part))


@dataclass(frozen=True)
class Record:
    """One entry of an annotation file, such as ``line 3`` or ``shape 2``, to be named in errors."""

    file: Path
    name: str = ""

    def error(self, message: str) -> FormatError:
        """The error to raise about this record."""
        return FormatError(self.file, message, self.name)

    def numbers(self, values: object) -> list[float]:
        """The values as finite floats.

        Raises:
            FormatError: not a list, or a member is no finite number.
        """
        if not isinstance(values, list):
            raise self.error(f"expected a list of numbers, got {values!r}")
        numbers = []
        for value in values:
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                raise self.error(f"{value!r} is not a number") from None
            if not math.isfinite(number):
                raise self.error(f"{value!r} is not finite")
            numbers.append(number)
        return numbers


class CocoBuilder:
    """Collects images and objects; ids count from 1 in the order of adding.

    Args:
        categories: all class names in the order of their ids. None means the names met, sorted.

    Raises:
        ValueError: a name appears twice.
    """

    def __init__(self, categories: Sequence[str] | None = None) -> None:
        if categories is not None and len(set(categories)) != len(categories):
            raise ValueError(f"a category name appears twice: {list(categories)}")
        self._categories = categories
        self._images: dict[str, dict[str, Any]] = {}
        self._annotations: list[dict[str, Any]] = []

    def add_image(self, record: Record, file_name: str, size: Size) -> int:
        """Add an image of ``size`` (height, width) and return its id."""
        if file_name in self._images:
            raise record.error(f"image '{file_name}' is described a second time")
        image_id = len(self._images) + 1
        self._images[file_name] = {
            "id": image_id,
            "file_name": file_name,
            "height": size[0],
            "width": size[1],
        }
        return image_id

    def add_box(
        self, record: Record, image_id: int, category: str, xywh: Sequence[float], **extra: Any
    ) -> None:
        """Add an object known by its box alone; a box without area is kept as it is."""
        area = max(xywh[2], 0.0) * max(xywh[3], 0.0)
        self._add(record, image_id, category, {"bbox": list(xywh), "area": area, **extra})

    def add_polygons(
        self, record: Record, image_id: int, category: str, polygons: Sequence[Sequence[float]]
    ) -> None:
        """Add one object made of flat polygons (x1, y1, x2, y2, ...).

        The area is the sum of the parts' areas, as in COCO's own files.
        """
        for polygon in polygons:
            if len(polygon) < 6 or len(polygon) % 2:
                raise record.error(f"a polygon needs three (x, y) points or more, got {polygon}")
        xs = [x for polygon in polygons for x in polygon[0::2]]
        ys = [y for polygon in polygons for y in polygon[1::2]]
        left, top = min(xs), min(ys)
        fields = {
            "bbox": [left, top, max(xs) - left, max(ys) - top],
            "area": sum(map(_shoelace, polygons)),
            "segmentation": [list(polygon) for polygon in polygons],
        }
        self._add(record, image_id, category, fields)

    def add_mask(
        self, record: Record, image_id: int, category: str, mask: RLE, *, is_crowd: bool = False
    ) -> None:
        """Add one object by its compressed run lengths; box and area are the mask's."""
        x1, y1, x2, y2 = rle.to_box(mask)
        fields = {
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": rle.area(mask),
            "segmentation": {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")},
            "iscrowd": int(is_crowd),
        }
        self._add(record, image_id, category, fields)

    def build(self) -> Coco:
        """The COCO dictionary."""
        names = self._categories
        if names is None:
            names = sorted({annotation["category_id"] for annotation in self._annotations})
        ids = {name: i for i, name in enumerate(names, start=1)}
        return {
            "images": list(self._images.values()),
            "annotations": [{**a, "category_id": ids[a["category_id"]]} for a in self._annotations],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        }

    def _add(self, record: Record, image_id: int, category: str, fields: dict[str, Any]) -> None:
        if self._categories is not None and category not in self._categories:
            raise record.error(f"class '{category}' is not among {list(self._categories)}")
        if not all(map(math.isfinite, (*fields["bbox"], fields["area"]))):
            raise record.error("its coordinates are too large to compute with")
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": category,  # the name, until `build` knows all names
                "iscrowd": 0,
                **fields,
            }
        )


def _shoelace(polygon: Sequence[float]) -> float:
    xs, ys = polygon[0::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in pairs)) / 2


def ellipse_polygon(
    center: tuple[float, float], radii: tuple[float, float], angle: float = 0.0
) -> list[float]:
    """An ellipse as the flat polygon inscribed in it.

    It has as many vertices, 12 to 360, as keep every edge within 0.1 pixel of the curve (for
    circles of a radius up to about 2,600 pixels).

    Args:
        center: (x, y).
        radii: half axes along x and y before the turn.
        angle: turn in radians, clockwise as seen on the image (from x towards y).
    """
    # The gap between an edge and its arc is r * (1 - cos(pi / n)).
    arc = math.acos(1 - 0.1 / max(*radii, 0.1))
    count = max(math.ceil(math.pi / arc), 12) if arc > math.pi / 360 else 360
    cos, sin = math.cos(angle), math.sin(angle)
    polygon = []
    for k in range(count):
        turn = 2 * math.pi * k / count
        x, y = radii[0] * math.cos(turn), radii[1] * math.sin(turn)
        polygon += [center[0] + x * cos - y * sin, center[1] + x * sin + y * cos]
    return polygon


def rectangle_polygon(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """The four corners, clockwise from the top left one, as a flat polygon."""
    left, right = sorted((x1, x2))
    top, bottom = sorted((y1, y2))
    return [left, top, right, top, right, bottom, left, bottom]


def refuse_shape(record: Record, kind: str, supported: Collection[str]) -> FormatError:
    """The error about a shape that encloses no area."""
    return record.error(
        f"shape type '{kind}' cannot become an instance (only {', '.join(sorted(supported))} can); "
        f"redraw it, or leave such shapes out with skip_shapes (--skip-shapes {kind})"
    )


def relative_path(record: Record, path: str) -> str:
    """A path of an annotation file, normalised, with forward slashes.

    Raises:
        FormatError: it is empty, absolute or leads out of the folder that it is relative to.
    """
    # Tools on Windows write backslashes; the drive letter is what PurePosixPath cannot see.
    normal = os.path.normpath(path.replace("\\", "/"))
    absolute = PurePosixPath(normal).is_absolute() or PureWindowsPath(normal).drive
    if normal in ("", ".", "..") or normal.startswith("../") or absolute:
        raise record.error(f"the path '{path}' does not stay under the image folder")
    return normal


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files under a folder at any depth, relative to it and sorted; hidden ones are left out.

    Raises:
        FormatError: it is no folder, or no file in it ends in one of ``suffixes``.
    """
    if not folder.is_dir():
        raise FormatError(folder, "no such folder")
    files = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    found = sorted(files, key=Path.as_posix)
    if not found:
        raise FormatError(folder, f"no file in it ends in {', '.join(sorted(suffixes))}")
    return found


def read_bytes(path: Path) -> bytes:
    """The content of an annotation file of at most 1 GiB.

    Raises:
        FormatError: it is larger.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise FormatError(path, f"larger than {_MAX_BYTES} bytes: not an annotation file")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """`read_bytes` decoded as UTF-8, with or without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not UTF-8 text ({error})") from None


def read_json(path: Path) -> Any:
    """`read_text` parsed as JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of an integer of thousands of digits
        raise FormatError(path, f"not JSON ({error})") from None


def tracked(items: Sequence[_T], on_progress: Progress | None) -> Iterator[_T]:
    """The items, with ``on_progress`` told after each."""
    for done, item in enumerate(items, start=1):
        yield item
        if on_progress is not None:
            on_progress(done, len(items))


def write_coco(coco: Coco, path: Path) -> None:
    """Write a COCO dictionary as JSON; a failure leaves the file at ``path`` as it was.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(coco, separators=(",", ":"), allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode())
