"""Generated micrographs for demonstrations: tissue as an electron microscope shows it, and nuclei.

Both come with their truth as mask images: the cells between the membranes for `semantic_png`, the
nuclei's numbers for `instance_png`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from instseg.structures.geometry import Size

Picture = tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]
"""A gray image and its mask, both ``[H, W]``."""

MIN_SIDE = 64


def generate_membranes(root: Path, *, images: int, size: Size = (192, 192), seed: int) -> None:
    """Write ``root/images/*.png`` and ``root/masks/*.png``: 255 in cells, 0 on membranes.

    The same arguments give the same pictures, and picture i does not depend on how many follow.

    Args:
        root: the folder, made if absent; files of an earlier call are replaced.
        images: how many, at least 1.
        size: (height, width) in pixels, each at least 64.
        seed: not negative.

    Raises:
        ValueError: an argument is out of range.
    """
    _generate(root, render_membranes, images, size, seed)


def generate_nuclei(root: Path, *, images: int, size: Size = (192, 192), seed: int) -> None:
    """As `generate_membranes`, but each nucleus has its number in a mask of 16 bits, 0 is none."""
    _generate(root, render_nuclei, images, size, seed)


def _generate(
    root: Path,
    render: Callable[[np.random.Generator, Size], Picture],
    images: int,
    size: Size,
    seed: int,
) -> None:
    if images < 1 or seed < 0 or min(size) < MIN_SIDE:
        raise ValueError(
            f"images must be at least 1, seed not negative and size at least {MIN_SIDE} x "
            f"{MIN_SIDE}, got images={images}, seed={seed}, size={size}"
        )
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(images):
        pictures = render(np.random.default_rng([seed, i]), size)
        for folder, picture in zip(("images", "masks"), pictures, strict=True):
            _, data = cv2.imencode(".png", picture)
            (root / folder / f"{i:04d}.png").write_bytes(data.tobytes())


def render_membranes(rng: np.random.Generator, size: Size) -> Picture:
    """Cells with bent dark membranes between them, and with dark organelles."""
    spacing = rng.uniform(22, 32)
    grid = np.mgrid[-1 : size[0] / spacing + 1, -1 : size[1] / spacing + 1]
    centres = (grid + rng.uniform(-0.4, 0.4, grid.shape)).reshape(2, -1).T * spacing
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    bent = [axis + 4 * _clouds(rng, size, 24) for axis in (rows, columns)]
    distances, _ = cKDTree(centres).query(np.stack(bent, axis=-1), k=2)
    thickness = (3.5 + 0.8 * _clouds(rng, size, 30)).clip(1.5)
    is_cell = distances[..., 1] - distances[..., 0] > thickness

    image = 165 + 12 * _clouds(rng, size, 8) + 18 * _clouds(rng, size, 50)
    for _ in range(len(centres) // 2):
        image[_ellipse(rng, size, rng.uniform(2, 8, 2))] = rng.uniform(60, 110)
    image[~is_cell] = rng.uniform(55, 80)
    return _seen(rng, image, blur=0.9, noise=11), np.where(is_cell, 255, 0).astype(np.uint8)


def render_nuclei(rng: np.random.Generator, size: Size) -> Picture:
    """Bright ellipses out of focus on a dark ground, some of which touch."""
    image = 18 + 6 * _clouds(rng, size, 60)
    numbers = np.zeros(size, np.uint16)
    count = round(size[0] * size[1] / rng.uniform(700, 1600))
    placed: list[tuple[npt.NDArray[np.float64], float]] = []
    for _ in range(6 * count):
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(5.5, 10.5)
        if placed and rng.random() < 0.5:  # beside another one
            other, its_radius = placed[rng.integers(len(placed))]
            angle = rng.uniform(0, 2 * np.pi)
            distance = 0.92 * (radius + its_radius)
            centre = other + distance * np.array([np.sin(angle), np.cos(angle)])
        own = _ellipse(rng, size, (radius, radius * rng.uniform(0.7, 1.0)), centre)
        free = own & (numbers == 0)
        if free.sum() < max(30, 0.9 * own.sum()):
            continue
        placed.append((centre, radius))
        numbers[free] = len(placed)
        image[free] = rng.uniform(60, 200) * (1 + 0.12 * _clouds(rng, size, 5)[free])
        if len(placed) == count:
            break
    return _seen(rng, image, blur=1.4, noise=5), numbers


def _ellipse(
    rng: np.random.Generator,
    size: Size,
    axes: Sequence[float] | npt.NDArray[np.float64],
    at: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.bool_]:
    """The pixels of a turned ellipse of these semi-axes, anywhere or ``at`` (row, column)."""
    row, column = rng.uniform(0, 1, 2) * size if at is None else at
    mask = np.zeros(size, np.uint8)
    box = ((float(column), float(row)), (2 * axes[1], 2 * axes[0]), float(rng.uniform(0, 180)))
    cv2.ellipse(mask, box, 1, cv2.FILLED)
    return mask.astype(np.bool_)


def _clouds(rng: np.random.Generator, size: Size, cell: int) -> npt.NDArray[np.float32]:
    """Smooth noise of standard deviation about 1, with hills every ``cell`` pixels."""
    coarse = rng.standard_normal((size[0] // cell + 3, size[1] // cell + 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _seen(
    rng: np.random.Generator, image: npt.NDArray[np.float32], *, blur: float, noise: float
) -> npt.NDArray[np.uint8]:
    """What the camera makes of it."""
    seen = cv2.GaussianBlur(image, (0, 0), blur) + rng.normal(0, noise, image.shape)
    return seen.clip(0, 255).round().astype(np.uint8)
