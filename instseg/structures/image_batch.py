"""Images of different sizes, padded into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from instseg.structures.geometry import Size


@dataclass(eq=False)
class ImageBatch:
    """A padded batch and the sizes its images had.

    Args:
        tensor: ``float [B, C, H, W]``; image b fills ``[:, :h_b, :w_b]``, the rest is the border.
        sizes: (height, width) of each image before padding.
    """

    tensor: Tensor
    sizes: list[Size]

    @classmethod
    def from_images(
        cls,
        images: Sequence[Tensor],
        size_divisor: int = 1,
        *,
        min_size: Size = (1, 1),
        fill: Tensor | None = None,
    ) -> ImageBatch:
        """Pad images ``[C, h, w]`` at the right and bottom to a common multiple of the divisor.

        Args:
            images: of one number of channels.
            size_divisor: the sides of the batch are multiples of it.
            min_size: (height, width) that the batch has at least.
            fill: ``[C]``, the colour of the border; None for 0.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height = _round_up(max(min_size[0], *(h for h, _ in sizes)), size_divisor)
        width = _round_up(max(min_size[1], *(w for _, w in sizes)), size_divisor)
        shape = (len(images), images[0].shape[0], height, width)
        if fill is None:
            tensor = images[0].new_zeros(shape)
        else:
            tensor = fill.to(images[0])[:, None, None].expand(shape).contiguous()
        for padded, image in zip(tensor, images, strict=True):
            padded[:, : image.shape[-2], : image.shape[-1]].copy_(image)
        return cls(tensor, sizes)


def _round_up(value: int, divisor: int) -> int:
    return (value + divisor - 1) // divisor * divisor
