"""Mosaic: four images around one point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision import tv_tensors

from instseg.data.transforms.mix import MixTransform, bounded, concatenate
from instseg.data.transforms.moves import (
    Pair,
    check_alike,
    check_probability,
    check_scales,
    checked_size,
    draw_float,
    intensity,
    resize,
    round_half_up,
    scaled,
    visible_enough,
)
from instseg.structures.geometry import AxisTransform, Size


class Mosaic(MixTransform):
    """Put a sample and three others around a random point, and show a part of them at random scale.

    Source: Bochkovskiy et al., "YOLOv4: Optimal Speed and Accuracy of Object Detection" (2020),
    section 3.3, in the form of YOLOX: each image is scaled to fit in ``size``; the four meet at a
    point of the middle half of a canvas twice as large; the canvas is scaled about its centre by a
    random factor and shifted by up to ``max_shift``, and the middle of it is the result. Where it
    shows no image it has the value ``fill``. Two things differ from YOLOX's code: its rotation and
    shear are left out, which boxes cannot follow tightly; and each image is resampled once,
    straight to its place, so that the border of the canvas does not cut it.

    Masks follow as polygons, or as run lengths where they are such or reach beyond their image.
    Objects of which less than ``min_visibility`` of the box is left are removed; crowd regions stay
    as long as any of them is visible.

    Args:
        size: (height, width) of the result.
        p: probability that a sample becomes a mosaic.
        min_scale: least factor, > 0, relative to images that fit in ``size``.
        max_scale: greatest factor.
        max_shift: greatest shift along each axis, as a share of the result's side.
        min_visibility: share of a box's area that must stay visible, in [0, 1].
        fill: value of what no image covers, 0 to 255; of 16 bits the same share of the range.
    """

    num_partners = 3

    def __init__(
        self,
        size: Size,
        *,
        p: float = 1.0,
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        max_shift: float = 0.1,
        min_visibility: float = 0.2,
        fill: int = 114,
    ) -> None:
        check_probability("p", p)
        check_probability("min_visibility", min_visibility)
        check_probability("max_shift", max_shift)
        check_scales(min_scale, max_scale)
        self.size, self.p = checked_size(size), p
        self.min_scale, self.max_scale, self.max_shift = min_scale, max_scale, max_shift
        self.min_visibility, self.fill = min_visibility, fill

    def __call__(self, base: Pair, partners: Sequence[Pair]) -> Pair:
        """Put ``base`` at the top left of the point, three partners at the other corners.

        Returns:
            The mosaic, and the objects that are visible in it in the order of the images.

        Raises:
            ValueError: the images differ in dtype or number of channels.
        """
        check_alike("Mosaic", [image for image, _ in (base, *partners)])
        scale = draw_float(self.min_scale, self.max_scale)
        joint_y, joint_x = (self._joint(side, scale) for side in self.size)
        channels, fill = base[0].shape[0], intensity(self.fill, base[0].dtype)
        canvas = base[0].new_full((channels, *self.size), fill)
        parts = []
        for i, (image, target) in enumerate([base, *partners]):
            height, width = target.image_size
            fit = min(self.size[0] / height, self.size[1] / width)
            # Plain bilinear, as YOLOX and `Letterbox` resample.
            image, target = resize(
                image, bounded(target), scaled((height, width), fit * scale), antialias=False
            )
            top = joint_y - target.image_size[0] if i < 2 else joint_y
            left = joint_x - target.image_size[1] if i % 2 == 0 else joint_x
            _paste(canvas, image, left, top)
            placed = target.transformed(AxisTransform.crop(-left, -top), self.size)
            parts.append(placed[visible_enough(target, placed, self.min_visibility)])
        return tv_tensors.Image(canvas), concatenate(parts)

    def _joint(self, side: int, scale: float) -> int:
        """Where the images meet along an axis of ``side`` pixels of the result."""
        from_centre = draw_float(-0.5, 0.5)  # of the canvas, in sides
        shift = draw_float(-self.max_shift, self.max_shift)
        return round_half_up(side * (0.5 + scale * from_centre + shift))


def _paste(canvas: torch.Tensor, image: torch.Tensor, left: int, top: int) -> None:
    """Write on the canvas what of ``image``, with its corner at (``top``, ``left``), is on it."""
    rows, columns = (
        slice(min(max(start, 0), limit), min(max(start + length, 0), limit))
        for start, length, limit in zip(
            (top, left), image.shape[-2:], canvas.shape[-2:], strict=True
        )
    )
    canvas[:, rows, columns] = image[
        :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
