"""Simple Copy-Paste: objects of one sample pasted on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors

from instseg.data.transforms.compose import drop_degenerate
from instseg.data.transforms.mix import MixTransform, concatenate
from instseg.data.transforms.moves import Pair, check_alike, check_probability, random_window
from instseg.ops import instance_rles, rle
from instseg.structures.instances import Instances
from instseg.structures.masks import RLE, Segmentation, SparseMasks


class SimpleCopyPaste(MixTransform):
    """Paste a random subset of one sample's objects on another sample, where they were.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation" (CVPR 2021), section 3. Both samples come already transformed, in the paper by
    large-scale jitter and flip. A donor of another size is cropped at random or padded to the
    size of the base.

    Each object of the donor is pasted with probability 1/2; crowd regions never are. Objects of
    the base lose the pixels that are pasted over and get the box of what is left; those left with
    less than ``min_visibility`` of their pixels, or none, are removed. Crowd regions stay as long
    as they have a pixel.

    Args:
        p: probability that a sample is pasted on at all.
        blend_sigma: standard deviation in pixels of the Gaussian that softens the pasted edges;
            0 pastes hard edges, which the paper finds as good.
        min_visibility: share of an object's pixels that must stay visible, in [0, 1].
    """

    needs_masks = True

    def __init__(
        self, p: float = 0.5, blend_sigma: float = 0.0, min_visibility: float = 0.1
    ) -> None:
        check_probability("p", p)
        check_probability("min_visibility", min_visibility)
        if blend_sigma < 0:
            raise ValueError(f"blend_sigma must not be negative, got {blend_sigma}")
        self.p, self.blend_sigma, self.min_visibility = p, blend_sigma, min_visibility

    def __call__(self, base: Pair, partners: Sequence[Pair]) -> Pair:
        """Paste objects of the one partner, the donor, on ``base``.

        Returns:
            The pasted image, and the base's visible objects followed by the pasted ones, with
            run-length masks at the image's size. The base itself where nothing is pasted.

        Raises:
            ValueError: a target has no masks, or the images differ in dtype or number of channels.
        """
        image, target = base
        size = target.image_size
        ((donor_image, donor_target),) = partners
        check_alike("SimpleCopyPaste", [image, donor_image])
        if donor_target.image_size != size:
            donor_image, donor_target = random_window(donor_image, donor_target, size, fill=0)
            donor_target = drop_degenerate(donor_target)
        chosen = donor_target[(torch.rand(len(donor_target)) < 0.5) & ~donor_target.crowd]
        pasted = _with_pixels(chosen)
        if not len(pasted):
            return base
        cover = rle.decode(rle.merge(instance_rles(pasted)))
        visible = self._occluded(target, cover)
        return self._blend(image, donor_image, cover), concatenate([visible, pasted])

    def _occluded(self, target: Instances, cover: npt.NDArray[np.uint8]) -> Instances:
        """``target`` without the pixels where ``cover`` is 1."""
        uncovered = rle.encode(cover == 0)
        boxes = target.boxes.clone()
        kept: list[int] = []
        codes: list[RLE] = []
        for i, (code, crowd) in enumerate(
            zip(instance_rles(target), target.crowd.tolist(), strict=True)
        ):
            left = rle.merge([code, uncovered], intersect=True)
            before, after = rle.area(code), rle.area(left)
            if after < (1 if crowd else max(1, self.min_visibility * before)):
                continue
            if after < before:
                boxes[i] = boxes.new_tensor(rle.to_box(left))
            kept.append(i)
            codes.append(left)
        return _with_codes(replace(target, boxes=boxes), kept, codes)

    def _blend(
        self, image: tv_tensors.Image, donor: tv_tensors.Image, cover: npt.NDArray[np.uint8]
    ) -> tv_tensors.Image:
        """``donor`` where ``cover`` is 1 and ``image`` elsewhere, softened by `blend_sigma`."""
        if self.blend_sigma == 0:
            return tv_tensors.Image(torch.where(torch.from_numpy(cover).bool(), donor, image))
        soft = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), self.blend_sigma)
        alpha = torch.from_numpy(soft)
        mixed: Tensor = image * (1 - alpha) + donor * alpha
        return tv_tensors.Image(mixed.round().to(image.dtype))


def _with_pixels(target: Instances) -> Instances:
    """The instances that have a pixel at the present size, with run-length masks of that size."""
    codes = instance_rles(target)
    kept = [i for i, code in enumerate(codes) if rle.area(code)]
    return _with_codes(target, kept, [codes[i] for i in kept])


def _with_codes(target: Instances, kept: list[int], codes: list[RLE]) -> Instances:
    segmentations: list[Segmentation] = [*codes]
    masks = SparseMasks(segmentations, target.image_size, target.image_size)
    return replace(target[kept], masks=masks)
