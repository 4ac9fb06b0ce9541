"""COCO annotation files of a given size, written quickly: masks come from a pool of drawn ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

IMAGE_SIZES = ((480, 640), (640, 480), (427, 640))
_POOL = 3000  # masks of each image size
_IN_FOLDER = 10_000


class SetSize(NamedTuple):
    """How many records a file has."""

    images: int
    objects: int
    classes: int
    boxes_only: bool = False


SETS = {
    "coco": SetSize(118_287, 860_001, 80),
    "lvis": SetSize(100_170, 1_270_141, 1203),
    "objects365": SetSize(1_742_289, 25_000_000, 365, boxes_only=True),
}
"""Sizes of COCO train2017, LVIS v1 train and Objects365 v2 train."""


def write_set(folder: Path, size: SetSize) -> None:
    """Write ``instances.json`` and empty files in ``images``."""
    images = folder / "images"
    for first in range(0, size.images, _IN_FOLDER):
        (images / f"{first // _IN_FOLDER:03d}").mkdir(parents=True)
    for i in range(size.images):
        (images / _name(i)).touch()
    with (folder / "instances.json").open("w", encoding="ascii") as file:
        file.write('{"info": {}, "images": [')
        file.writelines(_joined(_images(size)))
        file.write('], "annotations": [')
        file.writelines(_joined(_annotations(size)))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, size.classes + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _joined(texts: Iterator[str]) -> Iterator[str]:
    yield next(texts)
    for text in texts:
        yield ", "
        yield text


def _name(i: int) -> str:
    return f"{i // _IN_FOLDER:03d}/{i:012d}.jpg"


def _images(size: SetSize) -> Iterator[str]:
    for i in range(size.images):
        height, width = IMAGE_SIZES[i % len(IMAGE_SIZES)]
        yield (
            f'{{"license": 3, "file_name": "{_name(i)}", "height": {height}, "width": {width}, '
            f'"date_captured": "2013-11-14 17:02:52", "id": {i + 1}}}'
        )


def _annotations(size: SetSize) -> Iterator[str]:
    rng = np.random.default_rng(0)
    pools = [[_shape(rng, s, crowd=False) for _ in range(_POOL)] for s in IMAGE_SIZES]
    crowds = [[_shape(rng, s, crowd=True) for _ in range(_POOL // 100)] for s in IMAGE_SIZES]
    for i in range(size.objects):
        image, drawn, category = rng.integers((size.images, _POOL, size.classes)).tolist()
        is_crowd = i % 100 == 99
        shapes = (crowds if is_crowd else pools)[image % len(IMAGE_SIZES)]
        box, mask = shapes[drawn % len(shapes)]
        shape = "" if size.boxes_only else f'"segmentation": {mask}, '
        yield (
            f'{{{shape}"area": {drawn + 0.5}, "iscrowd": {int(is_crowd)}, "image_id": {image + 1}, '
            f'"bbox": {box}, "category_id": {category + 1}, "id": {i + 1}}}'
        )


def _shape(rng: np.random.Generator, size: tuple[int, int], *, crowd: bool) -> tuple[str, str]:
    """The JSON of a box and of a mask: polygons of about COCO's length, or runs of a crowd."""
    height, width = size
    rings = [_ring(rng, height, width) for _ in range(1 + (rng.random() < 0.15))]
    points = np.concatenate(rings)
    low, high = points.min(axis=0), points.max(axis=0)
    box = json.dumps(np.round([*low, *(high - low)], 2).tolist())
    if not crowd:
        return box, json.dumps([ring.reshape(-1).tolist() for ring in rings])
    ends = np.sort(rng.choice(height * width, 300, replace=False))
    runs = np.diff([0, *ends, height * width])
    return box, json.dumps({"counts": runs.tolist(), "size": list(size)})


def _ring(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An outline ``[K, 2]`` of two decimals; K is 24 in the mean and has a long tail."""
    count = int(np.clip(rng.lognormal(2.9, 0.75), 4, 300))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = rng.uniform(0.6, 1, count) * rng.uniform(5, 200)
    centre = rng.uniform((20, 20), (width - 20, height - 20))
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline: np.ndarray = np.round(np.clip(points, 0, (width, height)), 2)
    return outline
