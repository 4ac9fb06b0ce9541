"""A generated data set of the size of COCO val2017 and detections on it, as COCO's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from instseg.ops import rle

SIZE = (480, 640)
CATEGORIES = 80
_CORNERS = 24


def write_data_set(
    folder: Path, *, images: int, objects: int, detections: int, seed: int = 0
) -> dict[str, Path]:
    """Write ``gt.json``, ``boxes.json`` and ``masks.json``; files of an earlier call are kept.

    Objects are ellipses of log-normal size. Half of the detections lie near an object, a fifth of
    these with another category, the rest anywhere.
    """
    paths = {name: folder / f"{name}.json" for name in ("gt", "boxes", "masks")}
    if all(path.is_file() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, images, objects)
    category = rng.integers(0, CATEGORIES, objects)
    box = _random_boxes(rng, objects)
    truth = {
        "images": [
            {"id": i + 1, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i + 1:012d}.jpg"}
            for i in range(images)
        ],
        "categories": [{"id": k + 1, "name": f"category {k + 1}"} for k in range(CATEGORIES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(image[n]) + 1,
                "category_id": int(category[n]) + 1,
                "bbox": box[n].tolist(),
                "segmentation": [_ellipse(box[n]).ravel().tolist()],
                "area": float(round(np.pi / 4 * box[n, 2] * box[n, 3], 2)),
                "iscrowd": 0,
            }
            for n in range(objects)
        ],
    }
    paths["gt"].write_text(json.dumps(truth))

    near = rng.random(detections) < 0.5
    aim = rng.integers(0, objects, detections)
    found_box = np.where(near[:, None], _jittered(rng, box[aim]), _random_boxes(rng, detections))
    found_image = np.where(near, image[aim], rng.integers(0, images, detections))
    confused = rng.random(detections) < 0.2
    found_category = np.where(
        near & ~confused, category[aim], rng.integers(0, CATEGORIES, detections)
    )
    score = np.where(near, rng.beta(2, 2, detections), rng.beta(1, 4, detections)).round(6)
    records: dict[str, list[dict[str, Any]]] = {"boxes": [], "masks": []}
    for n in np.argsort(found_image, kind="stable"):
        common = {
            "image_id": int(found_image[n]) + 1,
            "category_id": int(found_category[n]) + 1,
            "score": float(score[n]),
        }
        code = rle.from_polygons([_ellipse(found_box[n])], SIZE)
        text = {"size": list(SIZE), "counts": code["counts"].decode()}
        records["boxes"].append(common | {"bbox": found_box[n].tolist()})
        records["masks"].append(common | {"segmentation": text})
    for name, content in records.items():
        paths[name].write_text(json.dumps(content))
    return paths


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    height, width = SIZE
    side = np.exp(rng.normal(4, 0.9, count)).clip(6, 400)
    shape = np.exp(rng.normal(0, 0.4, count))
    w, h = np.minimum(side * shape, width - 2), np.minimum(side / shape, height - 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return np.stack([x, y, w, h], axis=1).round(2)


def _jittered(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    height, width = SIZE
    jitter = rng.normal(0, 0.12, box.shape)
    x1 = (box[:, 0] + jitter[:, 0] * box[:, 2]).clip(0, width - 2)
    y1 = (box[:, 1] + jitter[:, 1] * box[:, 3]).clip(0, height - 2)
    x2 = np.clip(x1 + box[:, 2] * np.exp(jitter[:, 2]), x1 + 1, width)
    y2 = np.clip(y1 + box[:, 3] * np.exp(jitter[:, 3]), y1 + 1, height)
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).round(2)


def _ellipse(box: np.ndarray) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = box[2:] / 2
    return (box[:2] + radius + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)).round(2)
