"""A handful of small image files with objects, for the tests of data set and loader."""

from pathlib import Path

import cv2
import numpy as np

from instseg.data.index import Record
from instseg.ops import instance_rles, rle
from instseg.structures import Instances


def make_records(folder: Path, count: int = 9) -> list[Record]:
    """JPEG files of noise, every third without objects; polygons and RLE, the last a crowd."""
    rng = np.random.default_rng(3)
    records = []
    for i in range(count):
        height, width = int(rng.integers(30, 60)), int(rng.integers(30, 60))
        path = folder / f"image{i}.jpg"
        cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        boxes, segmentations = [], []
        for k in range(0 if i % 3 == 2 else 3):
            x1, y1 = rng.uniform(0, (width - 12, height - 12))
            x2, y2 = rng.uniform((x1 + 8, y1 + 8), (width, height))
            polygon = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
            boxes.append([x1, y1, x2, y2])
            code = rle.from_polygons([polygon], (height, width))
            segmentations.append(code if k == 2 else [polygon])
        n = len(boxes)
        records.append(
            Record(
                image_id=100 + i,
                path=path,
                size=(height, width),
                boxes=np.array(boxes, dtype=np.float32).reshape(n, 4),
                labels=np.arange(n, dtype=np.int64),
                is_crowd=np.arange(n) == 2,
                annotation_ids=np.arange(n, dtype=np.int64) + 10 * i,
                segmentations=segmentations,
            )
        )
    return records


def truncate(path: Path) -> None:
    """Cut a file to half its length."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def contents(target: Instances) -> list:
    """All that a target holds, to compare bit for bit."""
    return [
        target.image_size,
        target.boxes.numpy().tobytes(),
        target.labels.tolist(),
        target.crowd.tolist(),
        [(tuple(c["size"]), c["counts"]) for c in instance_rles(target)] if target.masks else None,
    ]
