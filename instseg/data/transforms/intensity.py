"""Changes of intensity for images of any number of channels and either depth."""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    check_probability,
    draw_float,
    happens,
)
from instseg.structures.instances import Instances


class IntensityJitter(PairTransform):
    """Change gamma, contrast and brightness of the whole image by random amounts.

    With intensities of 0 to 1, all channels alike: ``x ** g``, then ``m + c * (x - m)`` with the
    mean m of the image, then ``x + b``, clipped. g is drawn from ``[1 / (1 + gamma), 1 + gamma]``
    (uniform in its logarithm, so that brighter and darker are as likely), c from ``[1 - contrast,
    1 + contrast]`` and b from ``[-brightness, brightness]``.

    Torchvision's ``ColorJitter``, which takes one or three channels, has no gamma.

    Args:
        brightness: in [0, 1].
        contrast: in [0, 1].
        gamma: >= 0.
        p: probability.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self, brightness: float = 0.1, contrast: float = 0.2, gamma: float = 0.2, p: float = 1.0
    ) -> None:
        super().__init__()
        check_probability("brightness", brightness)
        check_probability("contrast", contrast)
        check_probability("p", p)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.brightness, self.contrast, self.gamma, self.p = brightness, contrast, gamma, p

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Change the intensities; the objects stay."""
        if not happens(self.p):
            return image, target
        log_gamma = float(np.log1p(self.gamma))
        exponent = float(np.exp(draw_float(-log_gamma, log_gamma)))
        factor = draw_float(1 - self.contrast, 1 + self.contrast)
        shift = draw_float(-self.brightness, self.brightness)
        top = torch.iinfo(image.dtype).max
        # Each value has one result apart from the mean, so the image's values can be looked up.
        levels = np.linspace(0, 1, top + 1, dtype=np.float64) ** exponent
        pixels = image.numpy()
        counts = np.bincount(pixels.reshape(-1), minlength=top + 1)
        mean = float(counts @ levels) / pixels.size
        table = ((mean + factor * (levels - mean) + shift).clip(0, 1) * top).round()
        changed = table.astype(pixels.dtype)[pixels]
        return tv_tensors.Image(torch.from_numpy(changed)), target
