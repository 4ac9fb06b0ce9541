"""A sound data set, and every kind of defect to plant in it, each in an image of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.fuzz import corpus

SIDE = 48
OBJECTS = 9
"""Of each image: squares in three rows of three."""

Training = Literal["unreadable", "image left out", "object left out", "trained"]
"""What becomes of a planted record.

- "unreadable": the image raises or is skipped, as ``on_error`` says.
- "image left out", "object left out": of the index, with a warning, whatever ``on_error`` says.
- "trained": used as it is, or completed.
"""


@dataclass
class Place:
    """One image to plant a defect in.

    Args:
        root: the image folder.
        coco: the whole annotation file.
        image: the image's record.
        objects: its annotations.
    """

    root: Path
    coco: dict[str, Any]
    image: dict[str, Any]
    objects: list[dict[str, Any]]

    @property
    def file(self) -> Path:
        """The image file."""
        return self.root / self.image["file_name"]

    @property
    def first(self) -> dict[str, Any]:
        """The annotation that defects of objects are planted in."""
        return self.objects[0]

    def new_id(self, section: str) -> int:
        """An id that no record of a section has."""
        return 10_000 + len(self.coco[section])

    def use_file(self, name: str, data: bytes) -> None:
        """Put another file in the place of the image's."""
        self.file.unlink()
        self.image["file_name"] = name
        self.file.write_bytes(data)

    def use_picture(self, suffix: str, picture: Image.Image, kind: str, **options: Any) -> None:
        """Put a picture in the place of the image's."""
        name = Path(self.image["file_name"]).with_suffix(suffix).name
        self.use_file(name, corpus.saved(picture, kind, **options))


@dataclass(frozen=True)
class Kind:
    """One kind of defect.

    Args:
        name: in words.
        code: what the check calls it; None where it is no defect.
        training: what becomes of the record.
        plant: makes it.
        where: whether the check names the image or the object too, or neither.
        is_error: whether the check counts it as an error; else it is a warning.
        others: further codes that it brings with it.
    """

    name: str
    code: str | None
    training: Training
    plant: Callable[[Place], object]
    where: Literal["image", "object", "file"] = "object"
    is_error: bool = True
    others: tuple[str, ...] = field(default=())


def write_set(folder: Path, images: int) -> tuple[dict[str, Any], list[Place]]:
    """A folder ``images`` of JPEG files and the content of their annotation file."""
    root = folder / "images"
    root.mkdir(parents=True)
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "fig"}, {"id": 2, "name": "nut"}],
    }
    places = []
    for i in range(1, images + 1):
        image = {"id": i, "file_name": f"{i:04d}.jpg", "width": SIDE, "height": SIDE}
        picture().save(root / f"{i:04d}.jpg")
        objects = [_object(i, k) for k in range(OBJECTS)]
        coco["images"].append(image)
        coco["annotations"] += objects
        places.append(Place(root, coco, image, objects))
    return coco, places


def save(coco: dict[str, Any], folder: Path) -> Path:
    """Write the annotation file."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(coco))
    return path


def picture() -> Image.Image:
    """48 x 48 pixels of noise."""
    return Image.fromarray(corpus.picture(SIDE, SIDE))


def _object(image_id: int, number: int) -> dict[str, Any]:
    x, y = 2 + number % 3 * 15, 2 + number // 3 * 15
    return {
        "id": image_id * 100 + number,
        "image_id": image_id,
        "category_id": 1 + number % 2,
        "bbox": [x, y, 12, 12],
        "area": 144,
        "iscrowd": 0,
        "segmentation": [[x, y, x + 12, y, x + 12, y + 12, x, y + 12]],
    }


def _set(**values: Any) -> Callable[[Place], object]:
    return lambda place: place.first.update(values)


def _drop(key: str) -> Callable[[Place], object]:
    return lambda place: place.first.pop(key)


def _set_image(**values: Any) -> Callable[[Place], object]:
    return lambda place: place.image.update(values)


def _rle(counts: object, size: tuple[int, int] = (SIDE, SIDE)) -> Callable[[Place], object]:
    return _set(segmentation={"size": list(size), "counts": counts})


def _bytes(data: bytes) -> Callable[[Place], object]:
    return lambda place: place.file.write_bytes(data)


def _huge_image() -> bytes:
    return dict(corpus.huge_images())["png"]


def _lying_chunk() -> bytes:
    """A PNG whose pixels claim 4 GB."""
    png = corpus.saved(picture(), "PNG")
    place = png.index(b"IDAT") - 4
    return png[:place] + b"\xff\0\0\0" + png[place + 4 :]


def _cut(place: Place) -> None:
    data = place.file.read_bytes()
    place.file.write_bytes(data[: len(data) // 2])


def _cut_png(place: Place) -> None:
    place.use_picture(".png", picture(), "PNG")
    _cut(place)


def _link_out(place: Place) -> None:
    outside = place.root.parent / place.file.name
    place.file.rename(outside)
    place.file.symlink_to(outside)


def _folder(place: Place) -> None:
    place.file.unlink()
    place.file.mkdir()


def _twin_id(place: Place) -> None:
    """Another picture under the same id, beside this one's in the list."""
    picture().save(place.root / f"twin-{place.image['id']}.jpg")
    twin = {**place.image, "file_name": f"twin-{place.image['id']}.jpg"}
    place.coco["images"].append(twin)


def _twin_file(place: Place) -> None:
    """The file of the set's last image, whose record now comes first."""
    place.file.unlink()
    images = place.coco["images"]
    last = max(images, key=itemgetter("id"))
    place.image["file_name"] = last["file_name"]
    images.remove(last)
    images.insert(0, last)


def _category(record: dict[str, Any] | None) -> Callable[[Place], object]:
    """A further category, which the first object is of."""

    def plant(place: Place) -> None:
        identity = place.new_id("categories")
        place.first["category_id"] = identity
        place.coco["categories"].append(record and {"id": identity, **record})

    return plant


def _twin_category(place: Place) -> None:
    for name in ("almond", "walnut"):
        _category({"name": name})(place)
        place.coco["categories"][-1]["id"] = 9_999
    place.first["category_id"] = 9_999


def _other_kind(suffix: str, kind: str, mode: str, **options: Any) -> Callable[[Place], object]:
    return lambda place: place.use_picture(suffix, picture().convert(mode), kind, **options)


def _float_tiff(place: Place) -> None:
    place.use_picture(".tif", picture().convert("F"), "TIFF")


def _animation(place: Place) -> None:
    frame = picture().convert("P")
    later = [frame.rotate(90)]
    place.use_picture(".gif", frame, "GIF", save_all=True, append_images=later)


def _deep_gray(place: Place) -> None:
    gray = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 25
    place.use_picture(".png", Image.fromarray(gray), "PNG")


def _turned(place: Place) -> None:
    """The file is stored lying, with an EXIF note; the record has the upright size."""
    note = Image.Exif()
    note[0x0112] = 6
    place.use_picture(".jpg", picture().crop((0, 0, SIDE, 40)), "JPEG", exif=note)
    place.image.update(width=40, height=SIDE)
    for item in place.objects:
        item.update(bbox=[1, 1, 9, 9], area=81, segmentation=[[1, 1, 10, 1, 10, 10, 1, 10]])


_FAR = [[200, 3, 210, 3, 210, 9]]

KINDS: tuple[Kind, ...] = (
    Kind("image file missing", "image-missing", "image left out",
         lambda place: place.file.unlink(), "image"),
    Kind("folder in the image's place", "image-missing", "image left out", _folder, "image"),
    Kind("JPEG cut short", "image-unreadable", "unreadable", _cut, "image"),
    Kind("PNG cut short", "image-unreadable", "unreadable", _cut_png, "image"),
    Kind("file of no bytes", "image-unreadable", "unreadable", _bytes(b""), "image"),
    Kind("not an image", "image-unreadable", "unreadable", _bytes(b"<html>"), "image"),
    Kind("PNG header of 100,000 x 100,000", "image-unreadable", "unreadable",
         _bytes(_huge_image()), "image"),
    Kind("PNG whose pixels claim 4 GB", "image-unreadable", "unreadable",
         _bytes(_lying_chunk()), "image"),
    Kind("TIFF whose pages form a loop", "image-unreadable", "unreadable",
         _bytes(corpus.looping_tiff()), "image"),
    Kind("pixels of 32 bits", "image-unreadable", "unreadable", _float_tiff, "image"),
    Kind("record states another width", "image-size-differs", "unreadable",
         _set_image(width=SIDE + 1), "image"),
    Kind("file name leaves the root", "path-leaves-root", "image left out",
         _set_image(file_name="../x.jpg"), "image"),
    Kind("absolute file name", "path-leaves-root", "image left out",
         _set_image(file_name="/etc/passwd"), "image"),
    Kind("link out of the root", "path-leaves-root", "image left out", _link_out, "image"),
    Kind("image record without height", "missing-key", "image left out",
         lambda place: place.image.pop("height"), "image"),
    Kind("width as text", "bad-type", "image left out", _set_image(width=str(SIDE)), "image"),
    Kind("file name null", "bad-type", "image left out", _set_image(file_name=None), "image"),
    Kind("width 0", "image-no-area", "image left out", _set_image(width=0), "image"),
    Kind("record states 100,000 x 100,000", "image-too-large", "image left out",
         _set_image(width=100_000, height=100_000), "image"),
    Kind("two images under one id", "duplicate-image-id", "image left out", _twin_id, "image"),
    Kind("two records of one file", "duplicate-file-name", "trained", _twin_file, "image",
         is_error=False),
    Kind("image record that is no object", "bad-type", "trained",
         lambda place: place.coco["images"].append("x"), "file"),
    Kind("two objects under one id", "duplicate-annotation-id", "object left out",
         lambda place: place.objects[1].update(id=place.first["id"])),
    Kind("object of an unknown image", "unknown-image", "object left out", _set(image_id=99_999)),
    Kind("object of an unknown category", "unknown-category", "object left out",
         _set(category_id=77)),
    Kind("category id as text", "bad-type", "object left out", _set(category_id="1")),
    Kind("object without box", "missing-key", "object left out", _drop("bbox")),
    Kind("box of three numbers", "bad-type", "object left out", _set(bbox=[2, 2, 12])),
    Kind("box of texts", "bad-type", "object left out", _set(bbox=["2", "2", "12", "12"])),
    Kind("box outside the image", "box-outside", "object left out", _set(bbox=[90, 2, 12, 12])),
    Kind("box partly outside", "box-partly-outside", "trained",
         _set(bbox=[-3, 2, 17, 12]), is_error=False),
    Kind("box of no area", "box-no-area", "object left out", _set(bbox=[2, 2, 0, 12])),
    Kind("box of negative height", "box-no-area", "object left out", _set(bbox=[2, 2, 12, -12])),
    Kind("NaN in a box", "box-not-finite", "object left out",
         _set(bbox=[float("nan"), 2, 12, 12])),
    Kind("infinity in a box", "box-not-finite", "object left out",
         _set(bbox=[2, 2, float("inf"), 12])),
    Kind("polygon of two points", "mask-malformed", "object left out",
         _set(segmentation=[[2, 2, 14, 14]])),
    Kind("odd number of coordinates", "mask-malformed", "object left out",
         _set(segmentation=[[2, 2, 14, 2, 14, 14, 2]])),
    Kind("NaN in a polygon", "mask-malformed", "object left out",
         _set(segmentation=[[2, 2, float("nan"), 2, 14, 14]])),
    Kind("texts in a polygon", "mask-malformed", "object left out",
         _set(segmentation=[["2", "2", "14", "2", "14", "14"]])),
    Kind("polygon of 10^9 pixels", "mask-malformed", "object left out",
         _set(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]])),
    Kind("polygon outside the image", "mask-empty", "object left out", _set(segmentation=_FAR)),
    Kind("no mask", "mask-missing", "object left out", _drop("segmentation"), is_error=False),
    Kind("RLE of another size", "mask-malformed", "object left out",
         _rle([SIDE * SIDE], (SIDE + 1, SIDE))),
    Kind("RLE that does not add up", "mask-malformed", "object left out", _rle([10, 20, 30])),
    Kind("RLE with a negative run", "mask-malformed", "object left out",
         _rle([-5, SIDE * SIDE + 5])),
    Kind("RLE of 2^31 pixels", "mask-malformed", "object left out", _rle([2**31])),
    Kind("RLE string of garbage", "mask-malformed", "object left out", _rle("\x01é garbage")),
    Kind("RLE string cut short", "mask-malformed", "object left out", _rle("oooooo")),
    Kind("RLE of no pixels", "mask-empty", "object left out", _rle([SIDE * SIDE])),
    Kind("mask outside the box", "mask-disagrees-with-box", "trained",
         _set(segmentation=[[30, 30, 45, 30, 45, 45, 30, 45]]), is_error=False),
    Kind("crowd flag as text", "bad-type", "object left out", _set(iscrowd="no")),
    Kind("no crowd flag", "missing-iscrowd", "trained", _drop("iscrowd"), is_error=False),
    Kind("area as text", "bad-area", "trained", _set(area="144"), is_error=False),
    Kind("area of another object", "area-disagrees", "trained", _set(area=900), is_error=False),
    Kind("negative object id", "bad-type", "object left out", _set(id=-4), "image"),
    Kind("object that is no object", "bad-type", "trained",
         lambda place: place.coco["annotations"].append([1, 2]), "file"),
    Kind("category without a name", "bad-type", "object left out", _category({"name": ""}),
         "file", others=("unknown-category",)),
    Kind("two categories under one id", "duplicate-category-id", "object left out",
         _twin_category, "file", others=("duplicate-category-id", "unknown-category")),
    Kind("two categories of one name", "duplicate-category-name", "trained",
         _category({"name": "fig"}), "file", is_error=False),
    Kind("animated GIF", None, "trained", _animation),
    Kind("PNG with alpha", None, "trained", _other_kind(".png", "PNG", "RGBA")),
    Kind("JPEG in CMYK", None, "trained", _other_kind(".jpg", "JPEG", "CMYK")),
    Kind("gray PNG", None, "trained", _other_kind(".png", "PNG", "L")),
    Kind("PNG of one bit", None, "trained", _other_kind(".png", "PNG", "1")),
    Kind("PNG of 16 bits", None, "trained", _deep_gray),
    Kind("palette with transparency", None, "trained",
         _other_kind(".png", "PNG", "P", transparency=3)),
    Kind("JPEG turned by EXIF", None, "trained", _turned),
    Kind("WebP", None, "trained", _other_kind(".webp", "WEBP", "RGB")),
)  # fmt: skip
