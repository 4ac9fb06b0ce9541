"""What the tests that hold detectors against torchvision's share."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_size(image, target):
    """In place of torchvision's resize, which instseg leaves to the data transforms."""
    return image, target


def images(*sizes: tuple[int, int], seed: int | None = None) -> list[Tensor]:
    """Noise; the seed follows from the sizes where none is given."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)) if seed is None else seed)
    return [torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8) for s in sizes]
