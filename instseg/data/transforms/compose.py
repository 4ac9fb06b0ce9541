"""A chain of transforms, and the checks that keep image and instances together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from instseg.data.transforms.moves import Pair, PairTransform
from instseg.data.transforms.resize import Resizing
from instseg.ops import large_boxes
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances

# Torchvision keeps these two families in a module each. Both move pixels, and know boxes and masks
# only as tv_tensors: they would leave Instances where they were.
_MOVES_PIXELS = {v2.Resize.__module__, v2.AutoAugment.__module__}


class Compose(PairTransform):
    """Apply transforms one after the other to an image and its instances.

    At the end objects whose box has a side below ``min_size`` are removed (`drop_degenerate`).

    Args:
        transforms: transforms of this package, and torchvision's v2 transforms of colour.
        min_size: in pixels.

    Raises:
        TypeError: one of ``transforms`` is no v2 transform, or a torchvision transform that moves
            pixels, alone or inside one of torchvision's containers.
        ValueError: (when called) a transform left an image of another dtype than before, or of
            another size than its target; the message names the transform.
    """

    def __init__(self, transforms: Sequence[v2.Transform], min_size: float = 1.0) -> None:
        super().__init__()
        for transform in transforms:
            _refuse_foreign_geometry(transform)
        self.transforms = nn.ModuleList(transforms)
        self.min_size = min_size

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Transform the pair.

        Args:
            image: ``uint8`` or ``uint16`` ``[C, H, W]``.
            target: objects with ``image_size == (H, W)``; or with the size of the whole image,
                where the image has fewer pixels, but as many as `largest_size`.
        """
        dtype = image.dtype
        for transform in self.transforms:
            image, target = transform(image, target)
            _check_together(image, target, transform, dtype)
        return image, drop_degenerate(target, self.min_size)

    def largest_size(self, size: Size) -> Size:
        """How many pixels suffice: what a resize in the first place makes of an image of ``size``.

        Returns:
            (height, width); ``size`` itself where anything else comes first.
        """
        first = next(iter(self.transforms), None)
        return first.largest_size(size) if isinstance(first, Resizing) else size


def drop_degenerate(target: Instances, min_size: float = 1.0) -> Instances:
    """The instances whose boxes have both sides of at least ``min_size`` pixels.

    Cropping and shrinking leave boxes without area, which have no size to regress to.
    """
    is_large = large_boxes(target.boxes, min_size)
    return target if is_large.all() else target[is_large]


def _refuse_foreign_geometry(transform: v2.Transform) -> None:
    for leaf in _leaves(transform):
        name = type(leaf).__name__
        if not isinstance(leaf, v2.Transform):
            raise TypeError(f"{name} is not a transform of torchvision.transforms.v2")
        if any(base.__module__ in _MOVES_PIXELS for base in type(leaf).__mro__):
            raise TypeError(
                f"torchvision's {name} would move the image but not its boxes and masks; "
                "use the transforms of instseg.data.transforms (Resize, Letterbox, "
                "ResizeShortestEdge, RandomHorizontalFlip, RandomVerticalFlip, RandomRotation90, "
                "RandomCrop, RandomWindow, LargeScaleJitter, Expand, IoUCrop, ElasticDeformation) "
                "for geometry"
            )


def _leaves(transform: nn.Module) -> Iterator[nn.Module]:
    """The transforms inside torchvision's containers (RandomApply, RandomChoice, ...)."""
    inner = getattr(transform, "transforms", None)
    if inner is None:
        yield transform
    else:
        for part in inner:
            yield from _leaves(part)


def _check_together(
    image: tv_tensors.Image, target: Instances, transform: nn.Module, dtype: torch.dtype
) -> None:
    size = (image.shape[-2], image.shape[-1])
    if size != target.image_size:
        raise ValueError(
            f"{transform} left an image of height x width {size[0]}x{size[1]} with a target for "
            f"{target.image_size[0]}x{target.image_size[1]}: it must move both"
        )
    if image.dtype != dtype:
        raise ValueError(
            f"{transform} made the {dtype} image {image.dtype}; samples keep their dtype, models "
            "normalise"
        )
