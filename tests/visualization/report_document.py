"""A document as the evaluation writes it, of made-up but plausible numbers, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FIGURES = {"precision_recall", "errors", "calibration", "confusion", "sizes"}
NAMES = (
    "cell",
    "nucleus",
    "bacterium",
    "platelet",
    "yeast",
    "fibre",
    "debris",
    "<script>x</script>",
)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")


def make_document(
    names: tuple[str, ...] = NAMES, iou_types: tuple[str, ...] = ("bbox", "segm")
) -> dict[str, Any]:
    return {
        "title": "Mask R-CNN ResNet-50 FPN on microscopy",
        "ground_truth": "annotations/val.json",
        "results": "runs/mask_rcnn/results.json",
        "versions": {"instseg": "0.1.0", "hotcoco": "1.3.0"},
        "created": "2026-11-21 17:00 UTC",
        "images": 100,
        "objects": 853,
        "detections": 1234,
        "categories": list(names),
        "confidence": 0.95,
        "replicates": 200,
        "iou_types": {t: _section(names, i) for i, t in enumerate(iou_types)},
    }


def make_picture(
    iou_type: str, image_id: int, box: Sequence[float] | None
) -> npt.NDArray[np.uint8]:
    """Discs with boxes or outlines on a grey gradient, ``uint8 [480, 640, 3]`` RGB, or a part."""
    random = np.random.default_rng(image_id)
    image = np.tile(np.linspace(40, 110, 640)[None, :, None], (480, 1, 3)).astype(np.uint8)
    for _ in range(random.integers(3, 12)):
        x, y = (int(v) for v in random.integers(60, 420, 2))
        radius = int(random.integers(12, 50))
        colour = tuple(int(c) for c in random.integers(90, 255, 3))
        cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)
        if iou_type == "bbox":
            cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), (255,) * 3, 2)
        else:
            cv2.circle(image, (x, y), radius, (255,) * 3, 2, cv2.LINE_AA)
    if box is not None:
        left, top, width, height = (int(v) for v in box)
        return image[max(0, top - 40) : top + height + 40, max(0, left - 40) : left + width + 40]
    return image


def _section(names: tuple[str, ...], seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    recall = np.linspace(0, 1, 101)

    def interval(value: float) -> dict[str, float | None]:
        return {"value": value, "low": max(0, value - 0.04), "high": min(1, value + 0.03)}

    def curve(quality: float) -> list[float]:
        return np.clip(1 - recall ** (4 * quality) * (1.3 - quality), 0, 1).tolist()

    quality = random.uniform(0.2, 0.9, len(names))
    undefined = {"value": -1, "low": None, "high": None}
    stats = {m: interval(float(random.uniform(0.2, 0.8))) for m in METRICS} | {"APs": undefined}
    per_category: dict[str, Any] = {
        name: {
            **{m: interval(float(q * f)) for m, f in _FACTORS.items()},
            "objects": int(random.integers(5, 200)),
            "detections": int(random.integers(5, 300)),
            "best": {"score": 0.4, "f1": float(q), "precision": 0.8, "recall": 0.7},
        }
        for name, q in zip(names, quality, strict=True)
    }
    # The one before the last has no ground truth.
    per_category[names[-2]] |= dict.fromkeys(_FACTORS, undefined) | {"objects": 0, "best": None}
    curves = {name: curve(float(q)) for name, q in zip(names, quality, strict=True)}
    curves[names[-2]] = [-1.0] * 101
    matrix = random.poisson(1.2, (len(names) + 1,) * 2)
    np.fill_diagonal(matrix, random.integers(20, 120, len(names) + 1))
    matrix[-1, -1] = 0
    return {
        "stats": stats,
        "per_category": per_category,
        "curves": {
            "recall": recall.tolist(),
            "mean": {"0.50": curve(0.8), "0.75": curve(0.55), "0.50:0.95": curve(0.45)},
            "categories": curves,
        },
        "errors": {
            name: {
                "count": int(random.integers(0, 80)),
                "delta_ap": float(random.uniform(-0.002, 0.08)),
            }
            for name in ERRORS
        },
        "calibration": {
            "ece": 0.083,
            "mce": 0.21,
            "bins": [
                {
                    "low": i / 10,
                    "high": (i + 1) / 10,
                    "confidence": i / 10 + 0.05,
                    "accuracy": (i / 10 + 0.05) ** 1.4,
                    "count": int(400 / (i + 1)) if i != 6 else 0,
                }
                for i in range(10)
            ],
        },
        "confusion": {"labels": [*names, "background"], "matrix": matrix.tolist()},
        "sizes": [
            {"name": "small", "objects": 0, "found": 0, "recall": None, "AP": -1},
            {"name": "medium", "objects": 503, "found": 330, "recall": 330 / 503, "AP": 0.52},
            {"name": "large", "objects": 350, "found": 301, "recall": 301 / 350, "AP": 0.71},
        ],
        "crowding": [
            {"name": name, "objects": 200, "found": found, "recall": found / 200}
            for name, found in zip(_CROWDS, (180, 171, 150, 120), strict=True)
        ],
        "label_errors": [
            {
                "image_id": 1 + i,
                "kind": "wrong label" if i % 2 else "missing",
                "category": names[(i if i % 2 else i + 1) % len(names)],
                "score": 0.98 - i / 50,
                "suggests": names[(i + 1) % len(names)],
                "box": [100 + 20 * i, 80 + 10 * i, 90, 70],
            }
            for i in range(6)
        ],
        "pictures": [
            {
                "image_id": i + 1,
                "file_name": f"plate_{i + 1:03}.png" if i != 8 else "",
                "group": "worst" if i < 6 else "instructive",
                "why": f"{7 - i % 5} missed, {i % 4} false, F1 0.{2 + i % 6}",
                "tp": 3,
                "fp": i % 4,
                "fn": 7 - i % 5,
                "f1": 0.2 + 0.1 * (i % 6),
                "error": None if i < 6 else ERRORS[i - 4],
                "categories": [names[i % len(names)], names[(i + 3) % len(names)]],
            }
            for i in range(10)
        ],
    }


_CROWDS = ("1 object in the image", "2-4", "5-9", "10+")
_FACTORS = {"AP": 0.7, "AP50": 1.0, "AP75": 0.75, "AR100": 0.8}
