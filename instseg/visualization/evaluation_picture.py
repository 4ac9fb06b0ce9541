"""An image with detections over ground truth, drawn so that right and wrong are seen at a glance.

Outcomes differ in colour and in line: each is told from the others with any form of colour vision,
and in print without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from instseg.ops import rle
from instseg.structures.masks import RLE

Image = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
Box = Sequence[float]

LONGEST_SIDE = 800
"""Of a whole image's picture, in pixels."""

LONGEST_SIDE_OF_DETAIL = 360
LARGEST_SCALE = 8

_SURROUNDINGS = 0.5  # of the box's longer side, on every side of it
_LEAST_SURROUNDINGS = 8.0  # pixels of the image
_OPACITY = 0.3
_TEXT_SIZE = 13
_PADDING = 2
_LONGEST_LABEL = 40  # characters


class Outcome(Enum):
    """What became of a detection or an object: (colour, line width, dash and gap or None).

    The colours are Okabe and Ito's sky blue, vermillion and yellow; lengths are in pixels of the
    picture.
    """

    TRUTH = (255, 255, 255), 2, None
    FOUND = (86, 180, 233), 3, None
    FALSE = (213, 94, 0), 4, (2, 9)
    MISSED = (240, 228, 66), 3, (10, 8)

    @property
    def colour(self) -> Colour:
        """RGB."""
        return self.value[0]

    @property
    def width(self) -> int:
        """Of the line, in pixels."""
        return self.value[1]

    @property
    def dash(self) -> tuple[int, int] | None:
        """Lengths of a dash and of the gap after it; None for a line without gaps."""
        return self.value[2]


@dataclass(frozen=True)
class Shape:
    """A detection or an object.

    Args:
        outcome: what became of it. TRUTH is an object that was found, drawn under its detection.
        box: [x, y, width, height] in pixels of the image.
        mask: of the image's size; None draws the box.
        label: a few words; "" writes none.
    """

    outcome: Outcome
    box: Box
    mask: RLE | None
    label: str


@dataclass(frozen=True)
class _View:
    """The part of the image that is shown, in whole pixels, and how much it is enlarged."""

    image_size: tuple[int, int]  # width, height
    left: int
    top: int
    right: int
    bottom: int
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        sides = self.right - self.left, self.bottom - self.top
        width, height = (max(1, round(self.scale * side)) for side in sides)
        return width, height

    def corners(self, box: Box) -> Points:
        """``[2, 2]``: upper left and lower right (x, y) of the part in the image."""
        x, y, width, height = box
        corners = np.array([(x, y), (x + width, y + height)]).clip(0, self.image_size)
        return (corners - (self.left, self.top)) * self.scale


def draw_outcomes(
    image: Image, shapes: Sequence[Shape], *, around: Box | None = None, note: str = ""
) -> Image:
    """Draw shapes and their labels on a copy of ``image``.

    Lines and letters have the same size whatever the image's, so the picture is enlarged or made
    smaller to `LONGEST_SIDE`, at most `LARGEST_SCALE` times. Labels of found objects give way where
    there is no room.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        shapes: in the coordinates of ``image``.
        around: show this box and what is around it alone, at `LONGEST_SIDE_OF_DETAIL`.
        note: written in the lower left corner.

    Returns:
        ``uint8 [h, w, 3]`` RGB.

    Raises:
        ValueError: ``image`` has another shape or dtype, a mask has another size than the image, or
            ``around`` lies outside of it.
    """
    _check(image, shapes)
    view = _view(image, around)
    part = image[view.top : view.bottom, view.left : view.right]
    method = cv2.INTER_AREA if view.scale < 1 else cv2.INTER_CUBIC
    canvas = np.array(cv2.resize(part, view.size, interpolation=method), dtype=np.uint8)
    in_order = sorted(shapes, key=lambda shape: list(Outcome).index(shape.outcome))
    contours = [_contours(shape, view) for shape in in_order]
    for shape, lines in zip(in_order, contours, strict=True):
        if shape.mask is not None and shape.outcome is not Outcome.TRUTH:
            _fill(canvas, lines, shape.outcome.colour)
    for shape, lines in zip(in_order, contours, strict=True):
        for line in lines:
            _draw_line(canvas, line, shape.outcome)
    return _write_labels(canvas, in_order, view, note)


def _check(image: Image, shapes: Sequence[Shape]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    for shape in shapes:
        if shape.mask is not None and tuple(shape.mask["size"]) != image.shape[:2]:
            raise ValueError(
                f"the mask of {shape.label!r} is of size {list(shape.mask['size'])}, "
                f"the image is {list(image.shape[:2])} (height, width)"
            )


def _view(image: Image, around: Box | None) -> _View:
    height, width = image.shape[:2]
    left, top, right, bottom, longest = 0, 0, width, height, LONGEST_SIDE
    if around is not None:
        x, y, box_width, box_height = around
        margin = max(_SURROUNDINGS * max(box_width, box_height), _LEAST_SURROUNDINGS)
        left, top = (max(0, int(edge - margin)) for edge in (x, y))
        right = min(width, int(np.ceil(x + box_width + margin)))
        bottom = min(height, int(np.ceil(y + box_height + margin)))
        longest = LONGEST_SIDE_OF_DETAIL
    if left >= right or top >= bottom:
        raise ValueError(f"around: {around} lies outside of an image of {height} x {width}")
    scale = min(LARGEST_SCALE, longest / max(right - left, bottom - top))
    return _View((width, height), left, top, right, bottom, scale)


def _contours(shape: Shape, view: _View) -> list[Points]:
    """Closed lines ``[N, 2]`` in the picture."""
    if shape.mask is None:
        (x1, y1), (x2, y2) = view.corners(shape.box) - 0.5  # OpenCV counts from pixels' centres
        return [np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])]
    mask = rle.decode(shape.mask)[view.top : view.bottom, view.left : view.right]
    # Interpolated and thresholded, the enlarged outline is smooth instead of a staircase.
    shown = cv2.resize(mask * 255, view.size, interpolation=cv2.INTER_LINEAR)
    found, _ = cv2.findContours(
        (shown >= 128).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    return [line[:, 0].astype(np.float64) for line in found]


def _fill(canvas: Image, lines: list[Points], colour: Colour) -> None:
    inside = np.zeros(canvas.shape[:2], np.uint8)
    # All contours in one call: those within others are holes.
    cv2.fillPoly(inside, [line.round().astype(np.int32) for line in lines], 1)
    where = inside.astype(np.bool_)
    tint = (1 - _OPACITY) * canvas[where] + _OPACITY * np.array(colour)
    canvas[where] = tint.round().astype(np.uint8)


def _draw_line(canvas: Image, line: Points, outcome: Outcome) -> None:
    """A dark line with the outcome's line upon it, so that it shows on any background."""
    pieces = [np.concatenate([line, line[:1]])]
    if outcome.dash is not None:
        pieces = _dashes(pieces[0], *outcome.dash)
    whole = [np.round(piece).astype(np.int32) for piece in pieces]
    cv2.polylines(canvas, whole, False, (0, 0, 0), outcome.width + 2, cv2.LINE_AA)
    cv2.polylines(canvas, whole, False, outcome.colour, outcome.width, cv2.LINE_AA)


def _dashes(line: Points, dash: float, gap: float) -> list[Points]:
    """The dashes of a line ``[N, 2]``; a line shorter than a dash and gap is one dash."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    way = np.concatenate([[0], np.cumsum(steps)])
    periods = max(1, int(way[-1] // (dash + gap)))
    period = way[-1] / periods
    pieces = []
    for start in np.arange(periods) * period:
        end = start + period * dash / (dash + gap)
        between = way[(way > start) & (way < end)]
        places = np.concatenate([[start], between, [end]])
        pieces.append(np.stack([np.interp(places, way, line[:, i]) for i in (0, 1)], axis=1))
    return pieces


def _write_labels(canvas: Image, shapes: Sequence[Shape], view: _View, note: str) -> Image:
    """Errors first, since what comes later may find no room."""
    picture = PillowImage.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    taken: list[tuple[int, int, int, int]] = []
    if note:
        place = 0, canvas.shape[0] - _plate(note)[1]
        taken.append(_write(pen, note, place, Outcome.TRUTH.colour))
    for shape in reversed(shapes):
        box, label = _visible(shape.box, view), _one_line(shape.label)
        if not label or box is None:
            continue
        places = _places(box, _plate(label), view.size)
        free = [p for p in places if not any(_overlap(p, other) for other in taken)]
        if free or shape.outcome is not Outcome.FOUND:
            chosen = (free or places)[0]
            taken.append(_write(pen, label, chosen[:2], shape.outcome.colour))
    return np.array(picture)


def _one_line(label: str) -> str:
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label)
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"


def _visible(box: Box, view: _View) -> Box | None:
    """The part of a box that is in the picture, [x1, y1, x2, y2]; None if there is none."""
    (x1, y1), (x2, y2) = view.corners(box).clip(0, view.size)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _places(
    box: Box, plate: tuple[int, int], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Where a label may stand: above its box, below, or within; x1, y1, x2, y2 in the picture."""
    x1, y1, x2, y2 = (round(v) for v in box)
    width, height = plate
    corners = [
        *((x, y1 - height) for x in (x1, x2 - width)),
        *((x, y2) for x in (x1, x2 - width)),
        *((x, y) for y in (y1, y2 - height) for x in (x1, x2 - width)),
    ]
    places = [
        (max(0, min(x, size[0] - width)), y)
        for x, y in corners
        if 0 <= y <= max(0, size[1] - height)
    ]
    return [(x, y, x + width, y + height) for x, y in places or [(0, 0)]]


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def _plate(text: str) -> tuple[int, int]:
    """(width, height) of a label."""
    return round(_font().getlength(text)) + 2 * _PADDING + 1, _TEXT_SIZE + 2 * _PADDING


def _write(
    pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], colour: Colour
) -> tuple[int, int, int, int]:
    width, height = _plate(text)
    x, y = place
    plate = x, y, x + width, y + height
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + _PADDING, y + height // 2), text, fill=(0, 0, 0), font=_font(), anchor="lm")
    return plate


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: European letters and most signs."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), _TEXT_SIZE)
