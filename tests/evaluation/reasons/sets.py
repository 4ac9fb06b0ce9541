"""Small data sets: planted by hand, or random with all that COCO treats specially."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from instseg.evaluation.ground_truth import prepare_ground_truth
from instseg.evaluation.reasons import Reasons, find_reasons
from instseg.evaluation.results import check_results

SIZE = (400, 500)  # height, width
BOTH = ("bbox", "segm")
Record = dict[str, Any]
Checked = tuple[dict[str, Any], list[Record]]


def annotation(
    image: int, category: int, box: list[float], *, crowd: int = 0, height: float = 1.0
) -> Record:
    """An object whose mask is its box, as a run-length code, or its upper part, as a polygon."""
    code = mask(box, height)
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": float(coco_mask.area(code)),
        "iscrowd": crowd,
        "segmentation": code if height == 1 else [corners(box, height)],
    }


def detection(
    image: int, category: int, score: float, box: list[float], *, height: float = 1.0
) -> Record:
    return {
        "image_id": image,
        "category_id": category,
        "score": score,
        "bbox": box,
        "segmentation": mask(box, height),
    }


def mask(box: list[float], height: float) -> Record:
    (code,) = coco_mask.frPyObjects([corners(box, height)], *SIZE)
    return {"size": list(SIZE), "counts": code["counts"].decode()}


def corners(box: list[float], height: float) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + height * h, x, y + height * h]


def prepared(annotations: list[Record], detections: list[Record], images: int) -> Checked:
    """Images 1, 2, ...; categories cat (1), dog (4), cow (9), listed in another order."""
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(images, 0, -1)],
        "categories": [{"id": i, "name": n} for i, n in ((9, "cow"), (1, "cat"), (4, "dog"))],
        "annotations": [{"id": i} | a for i, a in enumerate(annotations)],
    }
    gt = prepare_ground_truth(truth, BOTH)
    return gt, check_results(detections, gt, BOTH)


def reasons_of(
    annotations: list[Record],
    detections: list[Record],
    iou_type: str = "bbox",
    images: int = 1,
) -> Reasons:
    return find_reasons(*prepared(annotations, detections, images), iou_type)


def random_set(seed: int) -> Checked:
    """Crowds, tied scores and overlaps, images and categories without objects, all sizes.

    One set in five has 110 detections on one object, more than COCO counts.
    """
    rng = np.random.default_rng(seed)
    images = int(rng.integers(2, 6))
    annotations = [
        annotation(
            int(rng.integers(1, images + 1)),
            int(rng.choice([1, 4])),
            random_box(rng),
            crowd=int(rng.random() < 0.15),
            height=float(rng.choice([1, 0.6])),
        )
        for _ in range(rng.integers(0, 16))
    ]
    detections = []
    for _ in range(int(rng.integers(0, 40))):
        box, image, category = random_box(rng), int(rng.integers(1, images + 1)), 9
        if annotations and rng.random() < 0.9:
            aim = annotations[rng.integers(len(annotations))]
            spread = 0.04 if rng.random() < 0.5 else 0.3
            moved = rng.normal(0, spread, 4) * np.tile(aim["bbox"][2:], 2)
            box = np.round(np.maximum(np.array(aim["bbox"]) + moved, 1)).tolist()
            image, category = aim["image_id"], aim["category_id"]
        if rng.random() < 0.2:
            category = int(rng.choice([1, 4, 9]))
        copies = 110 if rng.random() < 0.006 else 1
        detections += [
            detection(
                image, category, round(float(rng.random()), 1), box, height=rng.choice([1, 0.7])
            )
            for _ in range(copies)
        ]
    return prepared(annotations, detections, images)


def random_box(rng: np.random.Generator) -> list[float]:
    w, h = rng.integers(8, 40 if rng.random() < 0.4 else 200, size=2)
    x, y = rng.integers(0, SIZE[1] - w), rng.integers(0, SIZE[0] - h)
    return [float(v) for v in (x, y, w, h)]
