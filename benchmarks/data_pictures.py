"""A generated set of COCO-like pictures: JPEG files and polygons of COCO's sizes and lengths.

COCO's train2017 has 118,287 files of 18 GB in all (150 KB each), most of them 640 x 480, with 7.3
objects each. The pictures here are noise with the spectrum of photographs (amplitude falling as
1/f), at a quality that makes files of that length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = ((480, 640), (480, 640), (640, 480), (427, 640), (640, 427), (375, 500))
"""(height, width); 640 x 480 is COCO's most frequent."""
PHOTO = (3000, 4000)
"""(height, width) of a photograph of 12 million pixels."""
OBJECTS = 7.3
CATEGORIES = 80
_QUALITY = 85


def write_pictures(
    folder: Path, count: int, *, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0
) -> dict[str, Any]:
    """Write ``count`` files and return their annotations in COCO's format."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        name = f"{i:06d}.jpg"
        pixels = picture(rng, height, width)
        cv2.imwrite(str(folder / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        for _ in range(rng.poisson(OBJECTS)):
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0}
            annotation["category_id"] = int(rng.integers(1, CATEGORIES + 1))
            annotations.append(annotation | outline(rng, height, width))
    categories = [{"id": i, "name": f"class{i}"} for i in range(1, CATEGORIES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise ``uint8 [H, W, 3]`` whose amplitude falls as 1/f; the channels are nearly alike."""
    rows, columns = np.fft.fftfreq(height) * height, np.fft.rfftfreq(width) * width
    frequency = np.maximum(np.hypot(rows[:, None], columns), 1)
    layers = []
    for _ in range(3):
        noise = rng.normal(size=(2, *frequency.shape))
        layer = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency, s=(height, width))
        layers.append((layer - layer.mean()) / layer.std())
    light, red, blue = layers
    colours = np.stack([light + 0.2 * blue, light, light + 0.2 * red], axis=-1)
    return (128 + 50 * colours).clip(0, 255).astype(np.uint8)


def outline(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """Box, area and segmentation of one object: a round outline with a rough edge.

    Objects have 0.1 % to 30 % of the picture's area; there is a vertex for about ten pixels of the
    edge, 8 to 80 in all (COCO's have 25 on average). One of six objects has a second part.
    """
    radius = np.sqrt(height * width * np.exp(rng.uniform(np.log(0.001), np.log(0.3))) / np.pi)
    centre = rng.uniform((0, 0), (width, height))
    parts = []
    for _ in range(2 if rng.random() < 1 / 6 else 1):
        vertices = int(np.clip(2 * np.pi * radius / 10, 8, 80))
        angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
        distance = radius * rng.uniform(0.7, 1.1, vertices)
        points = centre + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        parts.append(np.round(points.clip((0, 0), (width, height)), 2))
        centre = centre + rng.uniform(-radius, radius, 2)
        radius *= 0.5
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    return {
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float(np.prod(high - low)) / 2,
        "segmentation": [part.reshape(-1).tolist() for part in parts],
    }
