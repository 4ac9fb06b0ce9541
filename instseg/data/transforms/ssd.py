"""The two geometric augmentations of SSD: zooming out, and crops that overlap objects enough.

Source: Liu et al., "SSD: Single Shot MultiBox Detector" (ECCV 2016), sections 2.2 and 3.6. The
third, photometric, is `instseg.data.transforms.color.PhotometricDistort`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    check_probability,
    check_scales,
    draw_float,
    draw_int,
    happens,
    place,
    round_half_up,
    window,
)
from instseg.ops import box_iou
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances


class Expand(PairTransform):
    """Zoom out: put the image somewhere on a larger canvas of the mean colour.

    Source: SSD, section 3.6 ("zoom out"): this makes small objects. The canvas takes up to
    ``max_scale`` squared times the image's memory; resize large photographs first.

    Args:
        p: probability.
        max_scale: greatest side of the canvas, in sides of the image, >= 1.
        fill: red, green and blue of the canvas, 0 to 255; the default is ImageNet's mean, as in
            the paper's code. Images that are not RGB get the mean of the three in each channel,
            those of 16 bits the same share of their range.
    """

    def __init__(
        self, p: float = 0.5, max_scale: float = 4.0, fill: Sequence[int] = (123, 117, 104)
    ) -> None:
        super().__init__()
        check_probability("p", p)
        if not max_scale >= 1:
            raise ValueError(f"max_scale must be at least 1, got {max_scale}")
        if len(fill) != 3 or min(fill) < 0 or max(fill) > 255:
            raise ValueError(f"fill must be red, green and blue in 0..255, got {fill}")
        self.p, self.max_scale, self.fill = p, max_scale, tuple(fill)

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Put the pair on a canvas, or leave it."""
        if not happens(self.p):
            return image, target
        height, width = target.image_size
        scale = draw_float(1.0, self.max_scale)
        size = int(height * scale), int(width * scale)
        left, top = draw_int(0, size[1] - width), draw_int(0, size[0] - height)
        channels = image.shape[0]
        fill = self.fill if channels == 3 else (round_half_up(sum(self.fill) / 3),) * channels
        return place(image, target, left, top, size, fill)


class IoUCrop(PairTransform):
    """Crop a random patch that overlaps an object by a drawn least IoU, or nothing.

    Source: SSD, section 2.2 ("data augmentation"). Each sample draws one of: the whole image, any
    patch, or a patch whose IoU with an object is at least one of ``min_ious``. A patch's sides are
    random parts of the image's, its shape is limited by ``max_aspect_ratio``, and the centre of at
    least one object must lie in it, as of the object that the IoU is with. Where none of ``trials``
    random patches is such, another choice is drawn. Images without objects stay whole.

    Objects whose centre is not in the patch are removed; crowd regions stay as long as any of them
    is in it.

    Args:
        min_scale: least part of the image's height and width that the patch's have, in (0, 1]. The
            paper has 0.1; its code for COCO, and torchvision, 0.3.
        max_scale: greatest part.
        min_ious: the least overlaps to choose from, in [0, 1].
        max_aspect_ratio: greatest ratio of the patch's longer side to its shorter one, >= 1.
        trials: patches that are tried for one choice.
    """

    def __init__(
        self,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        *,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        max_aspect_ratio: float = 2.0,
        trials: int = 40,
    ) -> None:
        super().__init__()
        check_scales(min_scale, max_scale, limit=1)
        for value in min_ious:
            check_probability("each of min_ious", value)
        if not max_aspect_ratio >= 1:
            raise ValueError(f"max_aspect_ratio must be at least 1, got {max_aspect_ratio}")
        if trials < 1:
            raise ValueError(f"trials must be at least 1, got {trials}")
        self.min_scale, self.max_scale, self.min_ious = min_scale, max_scale, tuple(min_ious)
        self.max_aspect_ratio, self.trials = max_aspect_ratio, trials

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Crop the pair and remove the objects whose centres are cut away, or leave it."""
        patch = self._draw_patch(target)
        if patch is None:
            return image, target
        left, top, right, bottom = (int(v) for v in patch.tolist())
        cropped_image, cropped = window(image, target, left, top, (bottom - top, right - left))
        sides = cropped.boxes[:, 2:] - cropped.boxes[:, :2]
        is_seen = target.crowd & (sides > 0).all(dim=1)
        has_centre = _centres_inside(patch[None], target.boxes)[0] & ~target.crowd
        return cropped_image, cropped[is_seen | has_centre]

    def _draw_patch(self, target: Instances) -> Tensor | None:
        """A patch ``[4]`` (x1, y1, x2, y2) in whole pixels; None for the whole image."""
        boxes = target.boxes[~target.crowd]
        if not len(boxes):
            return None
        choices = (None, 0.0, *self.min_ious)
        # Drawing again until a choice succeeds gives those that can the same chance each, which is
        # that of coming first in a random order.
        for i in torch.randperm(len(choices)).tolist():
            min_iou = choices[i]
            if min_iou is None:
                break
            patches = self._random_patches(target.image_size)
            inside = _centres_inside(patches, boxes)
            overlap = box_iou(patches, boxes).masked_fill(~inside, -1).amax(dim=1)
            sides = patches[:, 2:] - patches[:, :2]
            aspect = sides.amax(dim=1) / sides.amin(dim=1)
            found = ((overlap >= min_iou) & (aspect <= self.max_aspect_ratio)).nonzero()
            if len(found):
                return patches[found[0, 0]]
        return None

    def _random_patches(self, size: Size) -> Tensor:
        """Patches ``float32 [trials, 4]`` of whole pixels inside an image of ``size``."""
        limit = torch.tensor([size[1], size[0]])
        scale = torch.empty(self.trials, 2).uniform_(self.min_scale, self.max_scale)
        sides = (limit * scale).floor().clamp(min=1)
        corner = ((limit - sides + 1) * torch.rand(self.trials, 2)).floor().minimum(limit - sides)
        return torch.cat([corner, corner + sides], dim=1)


def _centres_inside(patches: Tensor, boxes: Tensor) -> Tensor:
    """``bool [P, N]``: whether the centre of a box lies inside a patch, not on its border."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((patches[:, None, :2] < centres) & (centres < patches[:, None, 2:])).all(dim=2)
