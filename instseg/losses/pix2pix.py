"""The losses of pix2pix (Isola et al., 2017, arXiv:1611.07004, sections 3.1 and 3.3).

All take logits or images in any floating dtype and return a scalar float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.structures.geometry import Size


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy of a discriminator, halved as in section 3.3.

    ``-(mean log D(x, y) + mean log(1 - D(x, G(x)))) / 2`` with D the sigmoid of the logits.

    Args:
        real: logits of pairs from the data set, of any shape.
        fake: logits of pairs whose second image was generated.
    """
    real, fake = real.float(), fake.float()
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """``-mean log D(x, G(x))``: what the generator minimises instead of ``log(1 - D(x, G(x)))``.

    Args:
        fake: logits of the discriminator for generated pairs, of any shape.
    """
    return F.softplus(-fake.float()).mean()


def image_l1_loss(images: Tensor, targets: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The mean absolute difference of each image's own pixels, averaged over the images (eq. 3).

    Args:
        images: ``[B, C, H, W]``.
        targets: likewise.
        sizes: (height, width) of each image; what lies outside, at the right and below, is passed
            over.
    """
    own = [
        F.l1_loss(image[:, :h, :w].float(), target[:, :h, :w].float())
        for image, target, (h, w) in zip(images, targets, sizes, strict=True)
    ]
    return torch.stack(own).mean()
