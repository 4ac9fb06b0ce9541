"""What is done to decoded pixels: channel order, depth, orientation."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image


def is_gray(pixels: npt.NDArray[Any]) -> bool:
    """Whether the colours of ``[H, W, C]`` are equal; a fourth channel is alpha."""
    return not (pixels[..., 1:3] != pixels[..., :1]).any()


def stored_values(image: Image.Image, bits: int) -> npt.NDArray[Any]:
    """Pillow's pixels with the values of the file, without an alpha beside gray or indices."""
    pixels = np.array(image)
    if image.mode in ("LA", "PA"):
        return pixels[..., 0]
    if image.mode == "1":
        return pixels.astype(np.uint8)
    if image.mode == "L" and bits < 8:  # Pillow spreads 2 and 4 bits over 0..255
        return pixels // (255 // (2**bits - 1))
    return pixels


def convert_depth(pixels: npt.NDArray[Any], bits16: str) -> npt.NDArray[Any]:
    """16-bit values as 8-bit ones, unless they are kept; 8-bit values as they are."""
    if pixels.dtype == np.uint8 or bits16 == "keep":
        return pixels
    if bits16 == "scale":
        return (pixels >> 8).astype(np.uint8)
    low, high = int(pixels.min()), int(pixels.max())
    return ((pixels - low) * (255.0 / max(high - low, 1)) + 0.5).astype(np.uint8)


def from_opencv(pixels: npt.NDArray[Any], *, with_alpha: bool = False) -> npt.NDArray[Any]:
    """OpenCV's gray, BGR or BGRA as RGB, or BGRA as RGBA."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if with_alpha:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(pixels, code)


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undo an EXIF orientation, 1 to 8."""
    if orientation in (2, 4, 5, 7):  # the mirrored ones: left becomes right first
        pixels = pixels[:, ::-1]
    turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)  # counter-clockwise quarters
    return np.ascontiguousarray(np.rot90(pixels, turns))
