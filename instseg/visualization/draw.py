"""Instances drawn on their image, grids of pictures, and PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from instseg.ops import instance_rles, rle
from instseg.structures import Instances

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# Okabe and Ito's colours without black, then Paul Tol's "bright" ones that differ from them: both
# made to be told apart with any form of colour vision.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (170, 51, 119),
    (102, 204, 238),
    (204, 187, 68),
    (34, 136, 51),
    (187, 187, 187),
)
_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_instances(
    image: Image,
    instances: Instances,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.0,
    scale: int = 1,
    opacity: float = 0.45,
    color_by: Literal["class", "instance"] = "class",
) -> Image:
    """Draw masks, outlines, boxes and labels on a copy of ``image``.

    Masks become pixels one at a time, the largest first, so that small objects stay in sight.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        instances: objects in the coordinates of ``image``, on any device.
        class_names: name of each label.
        score_threshold: instances with a lower score are left out.
        scale: enlarge the picture so many times, to show small images with legible labels.
        opacity: of the masks, 0 (only outlines) to 1.
        color_by: one colour for each class, or for each instance in order.

    Returns:
        ``uint8 [scale * H, scale * W, 3]`` RGB.

    Raises:
        ValueError: the image has another shape or dtype or size than ``instances.image_size``, a
            label has no name, or ``scale`` is not positive.
    """
    _check(image, instances, class_names, scale)
    canvas = image.copy()
    if scale > 1:
        enlarged = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        canvas = np.asarray(enlarged, np.uint8)
    if instances.scores is not None:
        instances = instances[instances.scores >= score_threshold]

    labels = instances.labels.tolist()
    keys = labels if color_by == "class" else range(len(labels))
    colours = [PALETTE[k % len(PALETTE)] for k in keys]
    short_side = min(canvas.shape[:2])
    if instances.masks is not None:
        codes = instance_rles(instances)
        stroke = max(1, round(short_side / 250))
        for i in sorted(range(len(codes)), key=lambda i: -rle.area(codes[i])):
            draw_mask(canvas, rle.decode(codes[i]), colours[i], opacity, stroke)

    corners = _corners(instances, scale)
    stroke = max(1, round(short_side / 400))
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, stroke)
    crowd = instances.crowd.tolist()
    scores = None if instances.scores is None else instances.scores.tolist()
    # The surest detection's label comes last and so lies on top.
    for i in range(len(labels)) if scores is None else np.argsort(scores, kind="stable").tolist():
        text = class_names[labels[i]] + (" (crowd)" if crowd[i] else "")
        text += "" if scores is None else f" {scores[i]:.2f}"
        _draw_label(canvas, text, corners[i][:2], colours[i])
    return canvas


def side_by_side(rows: Sequence[tuple[Image, ...]], titles: Sequence[str]) -> Image:
    """Lay pictures out in a grid on white, one title above each column.

    Args:
        rows: each with one ``uint8 [H, W, 3]`` RGB picture per title; sizes may differ.
        titles: of the columns.

    Returns:
        ``uint8 [H, W, 3]`` RGB.

    Raises:
        ValueError: there is no row or no column, or a row has not one picture for each title.
    """
    if not rows or not titles:
        raise ValueError("a grid needs at least one row and one title")
    for i, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {i} has {len(row)} pictures for {len(titles)} titles")
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [max(row[j].shape[1] for row in rows) for j in range(len(titles))]
    text_height = max(11, round(min(heights) / 22))
    gap = max(4, round(min(heights) / 40))
    top = 2 * gap + text_height + gap // 2
    size = (top + sum(heights) + gap * len(rows), gap + sum(widths) + gap * len(titles), 3)
    grid = np.full(size, 255, np.uint8)

    x = gap
    for j, (title, width) in enumerate(zip(titles, widths, strict=True)):
        _put_text(grid, title, (x, gap + text_height), text_height, _BLACK)
        y = top
        for row, height in zip(rows, heights, strict=True):
            picture = row[j]
            grid[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            y += height + gap
        x += width + gap
    return grid


def save_png(image: Image, path: Path) -> None:
    """Write ``uint8 [H, W, 3]`` RGB to ``path``, at once or not at all; folders are made."""
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data.tobytes())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check(image: Image, instances: Instances, class_names: Sequence[str], scale: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if image.shape[:2] != tuple(instances.image_size):
        raise ValueError(
            f"the image is {image.shape[0]} x {image.shape[1]} but the instances belong to one of "
            f"{instances.image_size[0]} x {instances.image_size[1]} (height x width)"
        )
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    bad = [k for k in instances.labels.tolist() if not 0 <= k < len(class_names)]
    if bad:
        raise ValueError(f"label {bad[0]} has no name: there are {len(class_names)} class names")


def _corners(instances: Instances, scale: int) -> list[tuple[int, int, int, int]]:
    """Each box in whole pixels of the enlarged picture, clipped to it."""
    height, width = instances.image_size
    limits = np.array([width, height, width, height])
    boxes = instances.boxes.detach().cpu().double().numpy().clip(0, limits)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in (boxes * scale).round().astype(int).tolist()]


def draw_mask(
    canvas: Image, mask: npt.NDArray[np.uint8], colour: Colour, opacity: float, stroke: int
) -> None:
    """Tint and outline the pixels of ``mask``, of 0 and 1, which may be of a smaller size."""
    if mask.shape != canvas.shape[:2]:
        # Interpolated and thresholded, the enlarged outline is smooth instead of a staircase.
        large = cv2.resize(mask * 255, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        mask = (large >= 128).astype(np.uint8)
    inside = mask.astype(np.bool_)
    # By a table: as floating point the pixels of a large picture would take gigabytes.
    tints = (1 - opacity) * np.arange(256)[:, None] + opacity * np.array(colour)
    for channel, tint in enumerate(tints.round().astype(np.uint8).T):
        plane = canvas[..., channel]
        plane[inside] = tint[plane[inside]]
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, colour, stroke, cv2.LINE_AA)


def _draw_label(canvas: Image, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """Text on a plate of the instance's colour above the box, or inside where no room is above."""
    height = max(8, round(min(canvas.shape[:2]) / 36))
    margin = max(2, height // 4)
    width = _text_width(text, height)
    plate_height, plate_width = height + 2 * margin, width + 2 * margin
    left = max(0, min(corner[0], canvas.shape[1] - plate_width))
    top = corner[1] - plate_height if corner[1] >= plate_height else max(0, corner[1])
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), colour, cv2.FILLED)
    baseline = (left + margin, top + plate_height - margin)
    _put_text(canvas, text, baseline, height, _readable_on(colour))


def _readable_on(colour: Colour) -> Colour:
    """Black or white, whichever has the higher contrast by WCAG 2's relative luminance."""
    linear = [(c / 255) ** 2.2 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _WHITE


def _text_width(text: str, height: int) -> int:
    scale = cv2.getFontScaleFromHeight(_FONT, height, 1)
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def _put_text(
    canvas: Image, text: str, baseline: tuple[int, int], height: int, colour: Colour
) -> None:
    scale = cv2.getFontScaleFromHeight(_FONT, height, 1)
    cv2.putText(canvas, text, baseline, _FONT, scale, colour, max(1, height // 12), cv2.LINE_AA)
