"""The memory layout of images: interleaved while they are transformed, planar in the end.

Decoders give pixels side by side, all channels of each (``[H, W, C]``), in which resizing is
several times faster; an image ``[C, H, W]`` is then a permuted view of that memory.
"""

from __future__ import annotations

import cv2
import torch
from torch import Tensor


def planar(image: Tensor) -> Tensor:
    """``[C, H, W]`` contiguous, in memory that holds nothing else, ready to be sent or stored.

    Args:
        image: ``uint8`` or ``uint16`` ``[C, H, W]`` of any layout, such as a view of a larger one.
    """
    interleaved = image.permute(1, 2, 0)
    if 2 <= image.shape[0] <= 4 and interleaved.is_contiguous():
        # Several times faster than torch; of more channels OpenCV does not fill the given arrays.
        planes = torch.empty(image.shape, dtype=image.dtype)
        cv2.split(interleaved.numpy(), list(planes.numpy()))
        return planes
    if image.is_contiguous() and image.untyped_storage().nbytes() == image.nbytes:
        return image
    return image.clone(memory_format=torch.contiguous_format)
