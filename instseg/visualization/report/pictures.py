"""Pictures as ``data:`` URIs: small enough that a page can hold many of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
PictureSource = Callable[[str, int, Sequence[float] | None], Image | None]
"""(IoU type, as the document's key, image id, box or None) -> ``uint8 [H, W, 3]`` RGB, or None.

It gives the whole image, or, where a box [x, y, width, height] in pixels of the image is asked for,
what is in it and around it. None says that there is no picture.
"""

LONGEST_SIDE = 800  # pixels
_QUALITY = 80


def ask_for_picture(
    source: PictureSource, iou_type: str, image_id: int, box: Sequence[float] | None = None
) -> str | None:
    """The picture that the source gives, for ``src``; None where there is none.

    Raises:
        ValueError: it is not ``uint8 [H, W, 3]`` with at least one pixel.
    """
    image = source(iou_type, image_id, box)
    if image is None:
        return None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"picture of image {image_id} ({iou_type}): expected uint8 [H, W, 3], "
            f"got {image.dtype} {list(image.shape)}"
        )
    return to_data_uri(image)


def to_data_uri(image: Image) -> str:
    """The picture as WebP in a URI, scaled down where it is larger than `LONGEST_SIDE`.

    Args:
        image: ``uint8 [H, W, 3]`` RGB.
    """
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")
