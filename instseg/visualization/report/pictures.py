"""Pictures as ``data:`` URIs: small enough that a page can hold many of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
PictureSource = Callable[[str, int], Image | None]
"""From IoU type (the document's key) and image id to ``uint8 [H, W, 3]`` RGB of the image's own
size, or to None where there is no picture."""

LONGEST_SIDE = 800  # pixels
_LONGEST_SIDE_OF_CROP = 240
_QUALITY = 80
_SURROUNDINGS = 0.5  # of the box's longer side, on every side of it


def checked_picture(source: PictureSource, iou_type: str, image_id: int) -> Image | None:
    """The picture that the source gives.

    Raises:
        ValueError: it is not ``uint8 [H, W, 3]`` with at least one pixel.
    """
    image = source(iou_type, image_id)
    if image is None:
        return None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"picture of image {image_id} ({iou_type}): expected uint8 [H, W, 3], "
            f"got {image.dtype} {list(image.shape)}"
        )
    return image


def to_data_uri(image: Image, longest_side: int = LONGEST_SIDE) -> str:
    """The picture as WebP in a URI, scaled down where it is larger than ``longest_side``.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        longest_side: pixels.
    """
    scale = longest_side / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def crop_to_data_uri(image: Image, box: Sequence[float]) -> str | None:
    """What is in the box and around it; None where the box lies outside of the picture.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
        box: ``[x, y, width, height]`` in pixels of the picture.
    """
    x, y, width, height = box
    margin = _SURROUNDINGS * max(width, height) + 4
    left, top = (max(0, int(edge - margin)) for edge in (x, y))
    right, bottom = (max(0, int(edge + margin)) for edge in (x + width, y + height))
    part = image[top:bottom, left:right]
    return to_data_uri(part, _LONGEST_SIDE_OF_CROP) if part.size else None
