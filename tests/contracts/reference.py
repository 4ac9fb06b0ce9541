"""Plain float64 loops written from the definitions: the truth that ops are held to."""

from __future__ import annotations

import math

import numpy as np


def bilinear(feature: np.ndarray, y: float, x: float) -> float:
    """One bilinear sample of ``[H, W]``; pixel centres are integers, 0 beyond one pixel outside."""
    height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    wy = y - top if top < height - 1 else 0.0
    wx = x - left if left < width - 1 else 0.0
    upper = (1 - wx) * feature[top, left] + wx * feature[top, right]
    lower = (1 - wx) * feature[bottom, left] + wx * feature[bottom, right]
    return float((1 - wy) * upper + wy * lower)


def roi_align(
    feature: np.ndarray,
    rois: np.ndarray,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> np.ndarray:
    """Mask R-CNN, section 3, with detectron2's half-pixel shift for ``aligned``."""
    output = np.zeros((len(rois), feature.shape[1], *size))
    for k, (batch, *box) in enumerate(rois):
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0.0) for v in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        ny = sampling_ratio if sampling_ratio > 0 else math.ceil(height / size[0])
        nx = sampling_ratio if sampling_ratio > 0 else math.ceil(width / size[1])
        for c in range(feature.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = [
                        bilinear(
                            feature[int(batch), c],
                            y1 + (i + (p + 0.5) / ny) * bin_h,
                            x1 + (j + (q + 0.5) / nx) * bin_w,
                        )
                        for p in range(ny)
                        for q in range(nx)
                    ]
                    output[k, c, i, j] = sum(samples) / max(len(samples), 1)
    return output


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Keep a box unless it overlaps a better kept one by more than the threshold."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(int(i))
    return kept


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel centre inside the box samples the mask, whose cells tile the box; 0 outside."""
    side = mask.shape[0]
    padded = np.pad(mask, 1)
    canvas = np.zeros(size)
    x1, y1, x2, y2 = box
    for i in range(size[0]):
        for j in range(size[1]):
            if not (math.floor(x1) <= j < math.ceil(x2) and math.floor(y1) <= i < math.ceil(y2)):
                continue
            u = (j + 0.5 - x1) / (x2 - x1) * side - 0.5
            v = (i + 0.5 - y1) / (y2 - y1) * side - 0.5
            if -1 < u < side and -1 < v < side:
                canvas[i, j] = bilinear(padded, v + 1, u + 1)
    return canvas
