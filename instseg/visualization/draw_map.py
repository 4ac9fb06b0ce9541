"""Class maps and probabilities drawn on their image."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from instseg.structures import IGNORE, SemanticMap
from instseg.visualization.draw import PALETTE, Image, draw_mask


def displayable(image: Tensor) -> Image:
    """An image of any kind as ``uint8 [H, W, 3]`` RGB, to be looked at.

    Args:
        image: ``[C, H, W]``, uint8, uint16 or floating in 0..1. One channel is gray, of more than
            three the first three are shown, of two the first. Of uint16 the smallest value shown
            becomes black and the largest white, since cameras fill only a part of its range.
    """
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    pixels = shown.permute(1, 2, 0).cpu().numpy()
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        return ((pixels - low) * (255 / max(high - low, 1))).round().astype(np.uint8)
    if pixels.dtype.kind == "f":
        return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def draw_map(
    image: Image, semantic: SemanticMap, *, background: bool = True, opacity: float = 0.45
) -> Image:
    """Colour each pixel of a copy of ``image`` by its class, and line the classes' outlines.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        semantic: the classes of its pixels. Unknown pixels (`IGNORE`) turn gray.
        background: class 0 of exclusive classes is the background, which is not coloured.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: the image has another shape or dtype than that, or another size than the map.
    """
    if image.dtype != np.uint8 or image.shape != (*semantic.image_size, 3):
        raise ValueError(
            f"image must be uint8 {[*semantic.image_size, 3]} like the map, "
            f"got {image.dtype} {list(image.shape)}"
        )
    labels = semantic.labels.cpu().numpy()
    if semantic.is_multi_label:
        regions = [(k, labels[k] == 1) for k in range(len(labels))]
        unknown = (labels == IGNORE).any(axis=0)
    else:
        first = int(background)
        present = [k for k in np.unique(labels).tolist() if first <= k < IGNORE]
        regions = [(k - first, labels == k) for k in present]
        unknown = labels == IGNORE
    canvas = image.copy()
    stroke = max(1, round(min(canvas.shape[:2]) / 250))
    for k, region in regions:
        draw_mask(canvas, region.astype(np.uint8), PALETTE[k % len(PALETTE)], opacity, stroke)
    canvas[unknown] = canvas[unknown] // 2 + 64
    return canvas
