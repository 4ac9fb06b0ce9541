"""Scores of generated pictures against the true ones: L1, PSNR and SSIM.

All are taken of values in [0, 1] over all channels of an image, and averaged over the images. SSIM
is that of Wang et al. (Image Quality Assessment, 2004, section III-B): Gaussian windows of 11 x 11
pixels with sigma 1.5, K1 = 0.01, K2 = 0.03; without the outer 5 pixels, whose windows leave the
image, and averaged over the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from skimage.metrics import structural_similarity

from instseg.evaluation.maps import ImageId, PerImageEvaluator
from instseg.structures.image_target import ImageTarget

MAX_PSNR = 100.0
"""Decibels that count for equal pictures, whose ratio is infinite."""

SSIM_WINDOW = 11
"""The least side of a picture."""


class ImageFigures(NamedTuple):
    """One image: the mean absolute error, decibels, and structural similarity."""

    l1: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class ImageScores:
    """What was measured on pictures.

    Args:
        stats: means over images: ``l1`` in [0, 1], ``psnr`` in decibels (at most `MAX_PSNR` for
            each image), ``ssim`` in [-1, 1]; -1 without any image.
        per_image: the same by image id.
        images: how many images were scored.
    """

    stats: dict[str, float]
    per_image: Mapping[ImageId, ImageFigures]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        figures = {str(i): f._asdict() for i, f in self.per_image.items()}
        return asdict(self) | {"per_image": figures}


class ImageEvaluator(PerImageEvaluator[ImageFigures]):
    """Scores pictures given as `ImageTarget`.

    Raises:
        ValueError: from `update`, for pictures that differ in shape from the true ones, have a
            side below 11 pixels, or hold values that are not finite.
    """

    bounds: Mapping[str, tuple[float, float]] = {"psnr": (0.0, MAX_PSNR), "ssim": (-1.0, 1.0)}

    def _record(self, prediction: ImageTarget, target: ImageTarget) -> ImageFigures:
        made, true = (t.unit.detach().cpu().double().numpy() for t in (prediction, target))
        if made.shape != true.shape:
            raise ValueError(
                f"the prediction is {list(made.shape)} and the target {list(true.shape)} "
                "[C, H, W]: resize the prediction to the original image"
            )
        if min(true.shape[1:]) < SSIM_WINDOW:
            raise ValueError(
                f"pictures must have sides of {SSIM_WINDOW} pixels at least, SSIM's window, "
                f"got {true.shape[1]}x{true.shape[2]}"
            )
        for name, values in (("prediction", made), ("target", true)):
            if not np.isfinite(values).all():
                raise ValueError(f"the {name} holds values that are not finite")
        error = made - true
        mse = float(np.square(error).mean())
        return ImageFigures(
            l1=float(np.abs(error).mean()),
            psnr=float(min(MAX_PSNR, -10 * np.log10(mse))) if mse > 0 else MAX_PSNR,
            ssim=float(
                structural_similarity(
                    made,
                    true,
                    data_range=1.0,
                    channel_axis=0,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
            ),
        )

    def compute(self) -> ImageScores:
        """The scores over the images so far."""
        figures = np.array(list(self._records.values()), dtype=np.float64).reshape(-1, 3)
        means = figures.mean(axis=0) if len(figures) else np.full(3, -1.0)
        stats = dict(zip(ImageFigures._fields, means.tolist(), strict=True))
        return ImageScores(stats, dict(self._records), len(figures))
