"""Anchor sizes from the boxes of a training set.

Source: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger" (CVPR 2017), section 2, "Dimension
Clusters": k-means over the boxes' widths and heights, with ``d(box, centroid) = 1 - IoU(box,
centroid)``, the two boxes lying on one centre.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from instseg.data.defects import clipped_box
from instseg.structures.geometry import Size

Sizes = npt.NDArray[np.float64]
"""Widths and heights ``float64 [N, 2]`` in pixels."""

_MAX_ROUNDS = 300


def kmeans_anchors(sizes: Sizes, k: int, *, seed: int, restarts: int = 5) -> Sizes:
    """``k`` anchors that overlap boxes of the given sizes as much as they can.

    Starts are drawn as in k-means++ (Arthur and Vassilvitskii, 2007), with the distance above, and
    of several the result with the greatest `mean_best_iou` is kept.

    Args:
        sizes: width and height of N boxes, ``[N, 2]``, > 0.
        k: number of anchors.
        seed: of the starts; the result is a pure function of the arguments.
        restarts: number of starts.

    Returns:
        ``float64 [k, 2]``, width and height, by ascending area.

    Raises:
        ValueError: ``sizes`` is not ``[N, 2]`` and positive, or ``k`` is below 1 or greater than
            the number of different sizes.
    """
    sizes = _checked(sizes)
    distinct = len(np.unique(sizes, axis=0))
    if not 1 <= k <= distinct:
        raise ValueError(
            f"k must be in 1..{distinct}, the number of different box sizes, got {k} anchors; "
            "ask for fewer or give more boxes"
        )
    rng = np.random.default_rng(seed)
    runs = [_lloyd(sizes, _start(sizes, k, rng)) for _ in range(restarts)]
    anchors = max(runs, key=lambda anchors: mean_best_iou(sizes, anchors))
    return anchors[np.lexsort((anchors[:, 0], anchors.prod(axis=1)))]


def mean_best_iou(sizes: Sizes, anchors: Sizes) -> float:
    """The mean over boxes of the IoU with their best anchor ("Avg IOU" of the paper's table 1).

    Args:
        sizes: ``[N, 2]``, N >= 1.
        anchors: ``[k, 2]``.
    """
    return float(_size_iou(_checked(sizes), anchors).max(axis=1).mean())


def box_sizes(coco: Mapping[str, Any], frame: Size, *, letterbox: bool) -> Sizes:
    """Widths and heights ``float64 [N, 2]`` that a data set's boxes have at a network's input.

    Args:
        coco: sound annotations (`instseg.data.index.screen`); crowd regions are left out.
        frame: (height, width) of the input.
        letterbox: images are scaled to fit in ``frame``; else they are stretched to it.
    """
    images = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    return np.array(
        list(_scaled_sizes(coco["annotations"], images, frame, letterbox)), dtype=np.float64
    ).reshape(-1, 2)


def _scaled_sizes(
    annotations: Iterable[Mapping[str, Any]],
    images: Mapping[int, Size],
    frame: Size,
    letterbox: bool,
) -> Iterable[tuple[float, float]]:
    for annotation in annotations:
        if annotation["iscrowd"]:
            continue
        height, width = images[annotation["image_id"]]
        down, across = frame[0] / height, frame[1] / width
        if letterbox:
            down = across = min(down, across)
        x1, y1, x2, y2 = clipped_box(annotation["bbox"], (height, width))
        yield (x2 - x1) * across, (y2 - y1) * down


def _start(sizes: Sizes, k: int, rng: np.random.Generator) -> Sizes:
    """``k`` different boxes, each drawn by its squared distance from those drawn before."""
    chosen = [int(rng.integers(len(sizes)))]
    nearest = np.ones(len(sizes))
    for _ in range(1, k):
        nearest = np.minimum(nearest, 1 - _size_iou(sizes, sizes[chosen[-1:]])[:, 0])
        weights = nearest**2
        chosen.append(int(rng.choice(len(sizes), p=weights / weights.sum())))
    return sizes[chosen]


def _lloyd(sizes: Sizes, centroids: Sizes) -> Sizes:
    """Centroids that are the means of the boxes nearest to them.

    Means need not lower this distance, so that the rounds could go in a circle: hence their limit.
    """
    previous = None
    for _ in range(_MAX_ROUNDS):
        iou = _size_iou(sizes, centroids)
        nearest = iou.argmax(axis=1)
        if previous is not None and np.array_equal(nearest, previous):
            break
        previous = nearest
        centroids = _means(sizes, nearest, iou.max(axis=1), len(centroids))
    return centroids


def _means(
    sizes: Sizes, nearest: npt.NDArray[np.int64], overlap: npt.NDArray[np.float64], k: int
) -> Sizes:
    """The mean of each cluster; one that lost all its boxes moves to the worst covered box."""
    counts = np.bincount(nearest, minlength=k)
    sums = [np.bincount(nearest, weights=column, minlength=k) for column in sizes.T]
    means: Sizes = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    means[empty] = sizes[np.argsort(overlap, kind="stable")[: len(empty)]]
    return means


def _size_iou(sizes: Sizes, anchors: Sizes) -> npt.NDArray[np.float64]:
    """IoU ``[N, k]`` of boxes on one centre."""
    inter: npt.NDArray[np.float64]
    inter = np.minimum(sizes[:, None, 0], anchors[None, :, 0])
    inter *= np.minimum(sizes[:, None, 1], anchors[None, :, 1])
    union = sizes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - inter
    iou: npt.NDArray[np.float64] = inter / union
    return iou


def _checked(sizes: Sizes) -> Sizes:
    sizes = np.asarray(sizes, dtype=np.float64)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes):
        raise ValueError(f"sizes must be [N, 2], width and height, got {list(sizes.shape)}")
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("sizes must be finite and > 0: leave out boxes without area")
    return sizes
