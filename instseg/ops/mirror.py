"""Pixels beyond an image's edges, by mirroring."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored_indices(start: int, count: int, length: int) -> Tensor:
    """The pixels of a line that a window shows, which may begin and end outside of it.

    Outside, the line is mirrored at its ends, as often as it takes. The end pixels themselves are
    not doubled (numpy's "reflect"); of a single pixel there are only copies.

    Args:
        start: the window's first place; 0 is the line's first pixel.
        count: places in the window.
        length: pixels of the line, at least 1.

    Returns:
        ``int64 [count]``, in ``0 .. length - 1``.
    """
    period = max(2 * (length - 1), 1)
    place = torch.arange(start, start + count) % period
    return torch.minimum(place, period - place)
