"""What targets of any kind have to be to their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from instseg.structures.geometry import Size


class Target(Protocol):
    """What is known of one image, whether objects, classes of pixels or another picture."""

    @property
    def image_size(self) -> Size:
        """(height, width) of the image it belongs to."""


def check_targets(images: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Raise ValueError unless each image has a target of its size."""
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} images but {len(targets)} targets")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        if tuple(image.shape[-2:]) != tuple(target.image_size):
            raise ValueError(
                f"image {i} is {tuple(image.shape[-2:])} (height, width), "
                f"but its target is for {tuple(target.image_size)}"
            )
