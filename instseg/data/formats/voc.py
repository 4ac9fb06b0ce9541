"""Pascal VOC: one XML file of boxes for each image.

Source: the VOC development kit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/).
"""

# hotcoco's from_voc has the same coordinates, but knows no splits, drops `difficult`, stops at an
# inverted box and turns a box of coinciding corners into one of a pixel, which hides the defect.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from instseg.data.formats.common import (
    IMAGE_SUFFIXES,
    Coco,
    CocoBuilder,
    FormatError,
    Progress,
    Record,
    list_files,
    read_bytes,
    read_text,
    relative_path,
    tracked,
)
from instseg.data.image_io import image_size
from instseg.structures.geometry import Size

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read(
    root: Path,
    *,
    split: str | None = None,
    categories: Sequence[str] | None = None,
    keep_difficult: bool = True,
    on_progress: Progress | None = None,
) -> Coco:
    """Read ``root/Annotations/*.xml`` of the images in ``root/JPEGImages``, the image root.

    VOC's corners are pixel indices from 1, both inclusive: the box is (xmin - 1, ymin - 1) to
    (xmax, ymax). A side whose corners coincide or are swapped was never drawn; it keeps the length
    xmax - xmin <= 0, so that the check reports the box.

    An object's ``difficult`` flag becomes the annotation's field ``difficult`` (0 or 1);
    ``iscrowd`` is 0 for all, since VOC has no crowds. An image is the one with the name of its
    XML file; its size is what the XML declares, for the check to compare with the image, or the
    image's own where the XML declares none.

    Args:
        root: the folder that holds ``Annotations`` and ``JPEGImages``.
        split: read only the images of ``ImageSets/Main/<split>.txt``.
        categories: the class names in the order of their ids; None sorts the names met.
        keep_difficult: False leaves objects marked difficult out.
        on_progress: called with (files done, files in all).

    Returns:
        A COCO dictionary of boxes.

    Raises:
        FormatError: an XML file or a split that cannot be read, with file and object.
        ImageError: an image whose size is needed and cannot be read.
    """
    images = root / "JPEGImages"
    by_stem = {path.with_suffix("").as_posix(): path for path in list_files(images, IMAGE_SUFFIXES)}
    builder = CocoBuilder(categories)
    for stem in tracked(_stems(root, split), on_progress):
        record = Record(root / "Annotations" / f"{stem}.xml")
        tree = _parse(record)
        name = by_stem.get(stem, Path(f"{stem}.jpg")).as_posix()
        size = _declared_size(record, tree) or image_size(images / name)
        image_id = builder.add_image(record, name, size)
        for number, element in enumerate(tree.findall("object"), start=1):
            item = Record(record.file, f"object {number}")
            difficult = _difficult(item, element)
            if keep_difficult or not difficult:
                category, box = _text(item, element, "name"), _box(item, element)
                builder.add_box(item, image_id, category, box, difficult=difficult)
    return builder.build()


def _stems(root: Path, split: str | None) -> list[str]:
    """Names of the annotation files to read, without suffix, sorted."""
    if split is None:
        return [
            path.with_suffix("").as_posix() for path in list_files(root / "Annotations", {".xml"})
        ]
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        raise FormatError(file, f"no such file: there is no split '{split}'")
    stems = set()
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        record = Record(file, f"line {number}")
        stem = relative_path(record, line.split()[0])  # class-wise splits add a column of 1 and -1
        if not (root / "Annotations" / f"{stem}.xml").is_file():
            raise record.error(f"there is no Annotations/{stem}.xml")
        stems.add(stem)
    return sorted(stems)


def _parse(record: Record) -> Element:
    data = read_bytes(record.file)
    try:
        tree: Element = fromstring(data)
    # The last two: an encoding that is unknown, or that expat does not take.
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise record.error(f"not a plain XML file ({error})") from None
    if tree.tag != "annotation":
        raise record.error(f"the outer element is <{tree.tag}>, not <annotation>")
    return tree


def _declared_size(record: Record, tree: Element) -> Size | None:
    """(height, width) of <size>; None where it is missing or 0, as some tools leave it."""
    if tree.find("size") is None:
        return None
    height, width = (int(_number(record, tree, f"size/{key}")) for key in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None


def _difficult(record: Record, element: Element) -> int:
    text = (element.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise record.error(f"<difficult> is '{text}', not 0 or 1")
    return int(text)


def _box(record: Record, element: Element) -> list[float]:
    x1, y1, x2, y2 = (
        _number(record, element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return [x1 - 1, y1 - 1, _extent(x1, x2), _extent(y1, y2)]


def _extent(first: float, last: float) -> float:
    return last - first + 1 if last > first else last - first


def _number(record: Record, element: Element, path: str) -> float:
    return record.numbers([_text(record, element, path)])[0]


def _text(record: Record, element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise record.error(f"<{path}> is missing or empty")
    return text
