"""Batches for the tests of the losses of semantic maps, and what their plain loops share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instseg.losses.segmentation import LOSSES

ONE_MODE = {"cross_entropy": "multiclass", "bce": "multilabel"}
CASES = [
    (name, mode)
    for name in LOSSES
    for mode in ("multiclass", "multilabel")
    if ONE_MODE.get(name, mode) == mode
]
"""Every loss in every mode it has."""


class Batch(NamedTuple):
    """What a loss is computed of."""

    logits: Tensor
    target: Tensor
    class_weights: Tensor | None = None
    pixel_weights: Tensor | None = None

    def loss(self, f: Callable[..., Tensor], mode: str, **options: Any) -> Tensor:
        weights = {"class_weights": self.class_weights, "pixel_weights": self.pixel_weights}
        return f(self.logits, self.target, mode=mode, **weights, **options)


def some(
    mode: str, *, weighted: bool = True, ignored: float = 0.2, classes: int = 3, seed: int = 0
) -> Batch:
    """Two images of 4 x 5 pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 4, 5, generator=generator)
    shape, count = ((2, 4, 5), classes) if mode == "multiclass" else ((2, classes, 4, 5), 2)
    target = torch.randint(0, count, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < ignored] = 255
    if not weighted:
        return Batch(logits, target)
    class_weights = 0.5 + torch.rand(classes, generator=generator)
    return Batch(logits, target, class_weights, 3 * torch.rand(2, 4, 5, generator=generator))


class Element(NamedTuple):
    """One pixel for one class, in float64."""

    logit: float
    p: float
    y: int
    weight: float
    """Of the pixel; ignored pixels are not given at all."""


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x - max(row)) for x in row)
    return [math.exp(x - max(row)) / total for x in row]


def elements(batch: Batch, mode: str, image: int, c: int) -> list[Element]:
    """The pixels of class ``c`` of an image that are not ignored, in raster order."""
    return [e for _, e in positions(batch, mode, image, c)]


def positions(
    batch: Batch, mode: str, image: int, c: int
) -> Iterator[tuple[tuple[int, int], Element]]:
    height, width = batch.logits.shape[2:]
    for i in range(height):
        for j in range(width):
            row = batch.logits[image, :, i, j].double().tolist()
            if mode == "multiclass":
                label = int(batch.target[image, i, j])
                p, y = softmax(row)[c], int(label == c)
            else:
                label = int(batch.target[image, c, i, j])
                p, y = 1 / (1 + math.exp(-row[c])), label
            weights = batch.pixel_weights
            weight = 1.0 if weights is None else float(weights[image, i, j])
            if label != 255:
                yield (i, j), Element(row[c], p, y, weight)


def class_weight(batch: Batch, c: int) -> float:
    return 1.0 if batch.class_weights is None else float(batch.class_weights[c])


def regions(
    batch: Batch, mode: str, *, joined: bool, background: bool = True, skip_absent: bool = False
) -> Iterator[tuple[int, list[Element]]]:
    """Each class with its pixels: of every image, or of all images at once."""
    groups = [range(len(batch.logits))] if joined else [[b] for b in range(len(batch.logits))]
    for images in groups:
        for c in range(0 if background else 1, batch.logits.shape[1]):
            pixels = [e for b in images for e in elements(batch, mode, b, c)]
            if sum(e.weight for e in pixels) > 0 and not (
                skip_absent and not any(e.y * e.weight for e in pixels)
            ):
                yield c, pixels


def average(values: list[tuple[float, float]]) -> float:
    """Of (value, weight)."""
    return sum(v * w for v, w in values) / sum(w for _, w in values)
