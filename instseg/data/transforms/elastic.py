"""Elastic deformation, the augmentation on which U-Net learns from few images."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import tv_tensors

from instseg.data.transforms.moves import (
    Pair,
    PairTransform,
    check_probability,
    check_scales,
    draw_float,
    happens,
)
from instseg.data.transforms.resample import FloatMap, mirrored, resample
from instseg.structures.geometry import Size
from instseg.structures.instances import Instances


class ElasticDeformation(PairTransform):
    """Deform the image smoothly by random displacements of a coarse grid of nodes.

    Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation"
    (MICCAI 2015), section 3.1: displacements of a 3 x 3 grid from a Gaussian of 10 pixels standard
    deviation, and bicubic interpolation between them. The grid spans the image from corner to
    corner. Rotation about the centre and scaling, if wanted, are done in the same resampling. The
    size stays; beyond its borders the image is mirrored.

    Each pixel of the result belongs to the object of the pixel that it shows, mirrored ones too: an
    object near a border can gain a mirrored part. Masks become run lengths; boxes are those of the
    moved masks, or, without masks, of the pixels that come from inside the box. Objects without a
    pixel in the result are removed.

    Args:
        sigma: standard deviation of the displacements in pixels, >= 0.
        grid: nodes along each side, >= 2.
        rotation: greatest angle in degrees, in either direction; angles are uniform.
        scale: least and greatest factor by which the content grows; factors are uniform.
        p: probability.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        sigma: float = 10.0,
        grid: int = 3,
        *,
        rotation: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        p: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be at least 0 pixels and finite, got {sigma}")
        if grid < 2:
            raise ValueError(f"grid must be at least 2 nodes a side, got {grid}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must be in 0..180 degrees, got {rotation}")
        check_scales(*scale)
        check_probability("p", p)
        self.sigma, self.grid, self.rotation, self.p = sigma, grid, rotation, p
        self.min_scale, self.max_scale = scale

    def forward(self, image: tv_tensors.Image, target: Instances) -> Pair:
        """Deform the pair, or leave it."""
        if not happens(self.p):
            return image, target
        nodes = torch.randn(2, self.grid, self.grid) * self.sigma
        angle = math.radians(draw_float(-self.rotation, self.rotation))
        scale = draw_float(self.min_scale, self.max_scale)
        height, width = target.image_size
        rows, columns = _turned(target.image_size, angle, scale)
        down, right = displacements(nodes, target.image_size)
        rows, columns = mirrored(rows + down, height), mirrored(columns + right, width)
        return resample(image, target, rows, columns)


def displacements(nodes: torch.Tensor, size: Size) -> FloatMap:
    """Displacements of nodes interpolated bicubically to pixels.

    Args:
        nodes: ``float32 [2, G, G]``; the outermost nodes lie on the image's outermost pixels.
        size: (height, width).

    Returns:
        ``float32 [2, H, W]``.
    """
    dense = F.interpolate(nodes[None], list(size), mode="bicubic", align_corners=True)
    field: FloatMap = dense[0].numpy()
    return field


def _turned(size: Size, angle: float, scale: float) -> tuple[FloatMap, FloatMap]:
    """Source row and column of each pixel of an image turned (clockwise) and scaled."""
    middle = (size[0] - 1) / 2, (size[1] - 1) / 2
    down = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(middle[0])
    right = np.arange(size[1], dtype=np.float32) - np.float32(middle[1])
    cosine, sine = np.float32(math.cos(angle) / scale), np.float32(math.sin(angle) / scale)
    rows = np.float32(middle[0]) + cosine * down - sine * right
    columns = np.float32(middle[1]) + sine * down + cosine * right
    return rows, columns
