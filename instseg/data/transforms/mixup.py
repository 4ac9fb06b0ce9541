"""MixUp: two images in one, half transparent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision import tv_tensors

from instseg.data.transforms.mix import MixTransform, concatenate
from instseg.data.transforms.moves import (
    Pair,
    check_alike,
    check_probability,
    check_scales,
    draw_float,
    happens,
    hflip,
    random_window,
    resize,
    scaled,
    visible_enough,
    window,
)


class MixUp(MixTransform):
    """Average a sample with another one, and keep the objects of both.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), in the form of
    YOLOX (Ge et al., 2021, section 2.1) for detection: the partner is scaled to fit in a frame of
    the sample's size times a random factor, mirrored frame and all in half of the cases, and cut at
    random or padded to the sample's size. Both images weigh a half, and all objects count in full.
    Where the sample has no objects, or none of the partner's is left, the sample stays as it is.

    Args:
        p: probability that a sample is mixed.
        min_scale: least factor, > 0.
        max_scale: greatest factor.
        min_visibility: share of the box of a partner's object that must be left, in [0, 1]; crowd
            regions stay as long as any of them is visible.
        fill: value of the partner where its image does not reach, 0 to 255; of 16 bits the same
            share of the range.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        min_scale: float = 0.5,
        max_scale: float = 1.5,
        min_visibility: float = 0.2,
        fill: int = 114,
    ) -> None:
        check_probability("p", p)
        check_probability("min_visibility", min_visibility)
        check_scales(min_scale, max_scale)
        self.p, self.min_scale, self.max_scale = p, min_scale, max_scale
        self.min_visibility, self.fill = min_visibility, fill

    def __call__(self, base: Pair, partners: Sequence[Pair]) -> Pair:
        """Mix ``base`` with the one partner.

        Returns:
            The mixed image, and the base's objects followed by those of the partner; the base
            itself where nothing is mixed.

        Raises:
            ValueError: the images differ in dtype or number of channels.
        """
        check_alike("MixUp", [base[0], partners[0][0]])
        image, target = base
        if not len(target):
            return base
        other_image, other = self._jittered(partners[0], base)
        before = other
        other_image, other = random_window(other_image, other, target.image_size, self.fill)
        other = other[visible_enough(before, other, self.min_visibility)]
        if not len(other):
            return base
        mixed = ((image.to(torch.int32) + other_image.to(torch.int32)) // 2).to(image.dtype)
        return tv_tensors.Image(mixed), concatenate([target, other])

    def _jittered(self, partner: Pair, base: Pair) -> Pair:
        """The partner, scaled and perhaps mirrored, in its frame."""
        image, target = partner
        frame, size = base[1].image_size, target.image_size
        factor = draw_float(self.min_scale, self.max_scale)
        fit = min(frame[0] / size[0], frame[1] / size[1])
        # Plain bilinear, as YOLOX and `Letterbox` resample.
        image, target = resize(image, target, scaled(size, fit * factor), antialias=False)
        image, target = window(image, target, 0, 0, scaled(frame, factor), self.fill)
        return hflip(image, target) if happens(0.5) else (image, target)
