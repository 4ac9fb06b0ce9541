"""A generated data set for demonstrations and tests: textured shapes that hide each other.

The class of an object is its shape alone: colours, textures, sizes and rotations are drawn from the
same distributions for every class. A mask is the visible pixels of its object.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from instseg.ops import rle
from instseg.structures.geometry import Size

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Indicator = Callable[[Array, Array], Mask]

MIN_SIDE = 32
MIN_VISIBLE_PIXELS = 20
MIN_VISIBLE_FRACTION = 0.12
EMPTY_IMAGES = 0.03
MIN_CONTRAST = 80.0
SUPERSAMPLE = 3


@dataclass(eq=False)
class Scene:
    """One image and the truth about it.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        masks: for each object its visible pixels, ``bool [H, W]``, the frontmost object first.
        labels: for each object its index in `CLASSES`.
    """

    image: npt.NDArray[np.uint8]
    masks: list[Mask] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def generate_shapes(
    root: Path,
    *,
    images: int,
    size: Size = (160, 160),
    seed: int,
    max_objects: int = 6,
) -> Path:
    """Write a data set to ``root/images/*.png`` and ``root/annotations.json`` (COCO).

    The same arguments give the same bytes, and image i does not depend on how many follow it. The
    JSON is written last and at once, so a folder that has one is complete.

    Args:
        root: the folder, made if absent; files of an earlier call are replaced.
        images: how many, at least 1; about 3 % of them show no object.
        size: (height, width) in pixels, each at least 32.
        seed: not negative.
        max_objects: the most objects in one image, at least 1.

    Returns:
        The path of the JSON. Its segmentations are polygons, or compressed RLE where the visible
        region has a hole.

    Raises:
        ValueError: an argument is outside its range.
    """
    if images < 1 or max_objects < 1 or seed < 0:
        raise ValueError(
            "images and max_objects must be at least 1 and seed not negative, "
            f"got images={images}, max_objects={max_objects}, seed={seed}"
        )
    if min(size) < MIN_SIDE:
        raise ValueError(f"size must be at least {MIN_SIDE} x {MIN_SIDE}, got {size}")
    index_file = root / "annotations.json"
    (root / "images").mkdir(parents=True, exist_ok=True)
    index_file.unlink(missing_ok=True)

    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(images):
        scene = render_scene(seed, i, size, max_objects)
        name = f"{i:06d}.png"
        _write_png(root / "images" / name, scene.image)
        records.append({"id": i + 1, "file_name": name, "height": size[0], "width": size[1]})
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            annotations.append(_annotation(len(annotations) + 1, i + 1, label, mask))

    coco = {
        "info": {"description": f"instseg shapes, seed {seed}"},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)],
    }
    partial = index_file.with_suffix(".json.partial")
    partial.write_text(json.dumps(coco), encoding="utf-8")
    os.replace(partial, index_file)
    return index_file


def render_scene(seed: int, index: int, size: Size, max_objects: int) -> Scene:
    """Draw image ``index`` of the data set of ``seed``: a pure function of its arguments."""
    rng = np.random.default_rng([seed, index])
    canvas, colours = _background(rng, size)
    scene = Scene(np.empty(0, np.uint8))
    if rng.random() >= EMPTY_IMAGES:
        sprites = _place(rng, size, int(rng.integers(1, max_objects + 1)), scene)
        for sprite in reversed(sprites):
            _paint(rng, canvas, sprite, colours)
    canvas += rng.normal(0, rng.uniform(2, 6), canvas.shape).astype(np.float32)
    scene.image = canvas.clip(0, 255).round().astype(np.uint8)
    return scene


# --- shapes: inside or not, at coordinates scaled so that the shape fills the unit circle ---------


def _disk(u: Array, v: Array) -> Mask:
    return u * u + v * v <= 0.81


def _ring(u: Array, v: Array) -> Mask:
    radius = u * u + v * v
    return (radius <= 0.9) & (radius >= 0.25)


def _cross(u: Array, v: Array) -> Mask:
    u, v = np.abs(u), np.abs(v)
    return (np.maximum(u, v) <= 0.9) & (np.minimum(u, v) <= 0.3)


def _star(points: int, inner: float) -> Indicator:
    """A star whose tips lie on the unit circle and whose notches lie at radius ``inner``."""
    half = math.pi / points
    notch_x, notch_y = inner * math.cos(half), inner * math.sin(half)

    def inside(u: Array, v: Array) -> Mask:
        # Every point is folded into one half-sector, whose outline is the line from tip to notch.
        angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
        radius = np.hypot(u, v)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        return (x - 1) * notch_y - y * (notch_x - 1) <= 0

    return inside


SHAPES: dict[str, Indicator] = {
    "disk": _disk,
    "square": _star(4, math.cos(math.pi / 4)),
    "triangle": _star(3, math.cos(math.pi / 3)),
    "star": _star(5, 0.45),
    "ring": _ring,
    "cross": _cross,
}
CLASSES = tuple(SHAPES)


# --- placing ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Sprite:
    """An object's coverage of the pixels of a window of the image, before others hide it."""

    top: int
    left: int
    radius: float
    coverage: Array

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def _place(rng: np.random.Generator, size: Size, count: int, scene: Scene) -> list[_Sprite]:
    """Place up to ``count`` objects from front to back and note them in ``scene``.

    What lies behind cannot change what is seen of the objects before it, so an object of which too
    little would be seen is left out there and then.
    """
    taken = np.zeros(size, np.bool_)
    sprites: list[_Sprite] = []
    short_side = min(size)
    for _ in range(4 * count):
        label = int(rng.integers(len(CLASSES)))
        radius = float(np.exp(rng.uniform(np.log(0.07), np.log(0.28)))) * short_side
        sprite, area = _sprite(rng, size, SHAPES[CLASSES[label]], radius)
        visible = np.zeros(size, np.bool_)
        visible[sprite.window] = sprite.coverage >= 0.5
        visible &= ~taken
        pixels = np.count_nonzero(visible)
        if pixels < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * area):
            continue
        taken |= visible
        sprites.append(sprite)
        scene.masks.append(visible)
        scene.labels.append(label)
        if len(sprites) == count:
            break
    return sprites


def _sprite(
    rng: np.random.Generator, size: Size, inside: Indicator, radius: float
) -> tuple[_Sprite, float]:
    """A shape at a random place and rotation, and its area in pixels with what the image cuts."""
    angle = rng.uniform(0, 2 * math.pi)
    centre_y, centre_x = (rng.uniform(0.04, 0.96) * side for side in size)
    top, left = math.floor(centre_y - radius), math.floor(centre_x - radius)
    side = math.ceil(2 * radius) + 1
    offsets = ((np.arange(side * SUPERSAMPLE) + 0.5) / SUPERSAMPLE).astype(np.float32)
    y = (offsets[:, None] + (top - centre_y)) / radius
    x = (offsets[None, :] + (left - centre_x)) / radius
    u, v = _rotate(x, y, angle)
    fine = inside(u, v).reshape(side, SUPERSAMPLE, side, SUPERSAMPLE)
    coverage = fine.mean(axis=(1, 3), dtype=np.float32)
    area = float(np.count_nonzero(coverage >= 0.5))
    cropped = coverage[
        max(0, -top) : max(0, size[0] - top),
        max(0, -left) : max(0, size[1] - left),
    ]
    return _Sprite(max(0, top), max(0, left), radius, cropped), area


def _rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


# --- painting -----------------------------------------------------------------------------------


def _background(rng: np.random.Generator, size: Size) -> tuple[Array, list[Array]]:
    """A gradient with clouds, grain and stray lines, and the two colours of the gradient."""
    height, width = size
    colours = [_colour(rng, saturation=(0.0, 0.4), value=(0.2, 0.95)) for _ in range(2)]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(size)
    ramp, _ = _rotate(x - 0.5, y - 0.5, rng.uniform(0, 2 * math.pi))
    canvas = _mix(colours[0], colours[1], (ramp + 0.5).clip(0, 1))
    clouds = _clouds(rng, size, cells=int(rng.integers(3, 9)))
    canvas += rng.uniform(8, 30) * (clouds[..., None] - 0.5)
    # OpenCV draws smooth lines on 8-bit pictures alone.
    picture = canvas.clip(0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(2, 7))):
        ends = rng.uniform(-0.1, 1.1, (3, 2)) * (width, height)
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        colour = _colour(rng, saturation=(0.0, 0.6), value=(0.15, 1.0)).tolist()
        points = [np.round(curve).astype(np.int32)]
        cv2.polylines(picture, points, False, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return picture.astype(np.float32), colours


def _paint(
    rng: np.random.Generator, canvas: Array, sprite: _Sprite, background: list[Array]
) -> None:
    """Draw the textured object over ``canvas``, with a soft shadow on what lies behind it."""
    alpha = np.zeros(canvas.shape[:2], np.float32)
    alpha[sprite.window] = sprite.coverage
    sigma = 1 + 0.06 * sprite.radius
    shift = np.array([[1, 0, 0.7 * sigma], [0, 1, 0.7 * sigma]])
    shadow = cv2.warpAffine(alpha, shift, alpha.shape[::-1])
    canvas *= 1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), sigma)[..., None]

    base = _contrasting(rng, background)
    accent = _colour(rng, saturation=(0.2, 1.0), value=(0.2, 1.0))
    pattern = rng.uniform(0.25, 0.7) * _texture(rng, sprite)
    weight = sprite.coverage[..., None]
    region = canvas[sprite.window]
    region += weight * (_mix(base, accent, pattern) - region)


def _texture(rng: np.random.Generator, sprite: _Sprite) -> Array:
    """Stripes, checks, clouds, grain or a gradient over the sprite's window, in [0, 1]."""
    height, width = sprite.coverage.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = _rotate(x, y, rng.uniform(0, 2 * math.pi))
    wave = 2 * math.pi / rng.uniform(5, max(6, 0.7 * sprite.radius))
    phase_u, phase_v = rng.uniform(0, 2 * math.pi, 2).astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:
        return (0.5 + 1.5 * np.sin(wave * u + phase_u)).clip(0, 1)
    if kind == 1:
        return (0.5 + 3 * np.sin(wave * u + phase_u) * np.sin(wave * v + phase_v)).clip(0, 1)
    if kind == 2:
        return _clouds(rng, (height, width), cells=5)
    if kind == 3:
        return rng.random((height, width), dtype=np.float32)
    return (u - u.min()) / max(float(np.ptp(u)), 1.0)


def _clouds(rng: np.random.Generator, size: Size, cells: int) -> Array:
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    return first + weight[..., None] * (second - first)


def _contrasting(rng: np.random.Generator, colours: list[Array]) -> Array:
    """A random colour that differs from each of ``colours``, or the best of 20 tries."""
    tries = [_colour(rng, saturation=(0.3, 1.0), value=(0.35, 1.0)) for _ in range(20)]
    contrast = [min(float(np.linalg.norm(c - other)) for other in colours) for c in tries]
    first = next((i for i, c in enumerate(contrast) if c >= MIN_CONTRAST), None)
    return tries[int(np.argmax(contrast)) if first is None else first]


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Array:
    hue, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, s, v), np.float32)


# --- annotations --------------------------------------------------------------------------------


def _annotation(annotation_id: int, image_id: int, label: int, mask: Mask) -> dict[str, Any]:
    code = rle.encode(mask)
    x1, y1, x2, y2 = rle.to_box(code)
    polygons = _polygons(mask)
    segmentation: list[list[float]] | dict[str, Any] = polygons or {
        "size": list(mask.shape),
        "counts": code["counts"].decode("ascii"),
    }
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": rle.area(code),
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def _polygons(mask: Mask) -> list[list[float]]:
    """COCO polygons that give back exactly the mask; none where it has a hole."""
    # OpenCV's contours join the centres of border pixels and so cut half a pixel off all round.
    # On the mask at twice its size they run a quarter pixel inside the true outline, between it
    # and all pixel centres, so COCO's rasteriser fills the very same pixels.
    double = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return []
    return [((contour.astype(np.float64) + 0.5) / 2).ravel().tolist() for contour in contours]


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    path.write_bytes(data.tobytes())
