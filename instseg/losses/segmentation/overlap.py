"""Soft counts of right and wrong pixels, of which the losses of regions are ratios.

These losses share, beside the common arguments (`instseg.losses.segmentation.common`):

- ``batch``: False: a ratio for each class of each image; True: one for each class, of the counts
  of the whole batch, which does not weigh small objects and empty images as high.
- ``smooth``: pixels added to numerator and denominator. A class that is not in the target and not
  predicted is then perfect (index 1), and predictions of an absent class cost the more the
  larger they are. With ``smooth=0`` an absent class costs 1 without gradient until it is
  predicted nowhere.
- ``include_background``: whether class 0 is averaged too; False in mode ``multiclass`` alone.
- ``skip_absent``: whether classes without a target pixel (in the image, or in the batch if
  ``batch``) are left out of the average.

The average over images and classes is weighted by ``class_weights``. Images, or channels, all of
whose pixels are ignored or of weight 0 do not enter it. ``pixel_weights`` multiply the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from instseg.losses.segmentation.common import EPSILON, Pixels, require_at_least


@dataclass(frozen=True, eq=False)
class Overlap:
    """Soft counts in pixels of each class in each image, all ``[B, C]``."""

    tp: Tensor
    """True positives: sum of p over the pixels of the class."""
    fp: Tensor
    """False positives: sum of p over the others."""
    fn: Tensor
    """False negatives: sum of 1 - p over the pixels of the class."""
    positives: Tensor
    """Pixels of the class."""
    negatives: Tensor
    """The others."""
    weights: Tensor
    """What each counts in the average."""

    def index(self, alpha: float, beta: float, smooth: float) -> Tensor:
        """``[B, C]`` in [0, 1]: (tp + smooth) / (tp + alpha fp + beta fn + smooth); 1 of nothing.

        Raises:
            ValueError: a number is negative.
        """
        for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth)):
            require_at_least(name, value, 0)
        part = self.tp + smooth
        return ratio(part, part + alpha * self.fp + beta * self.fn)

    def dice(self, smooth: float) -> Tensor:
        """``[B, C]`` in [0, 1]: (2 tp + smooth) / (2 tp + fp + fn + smooth)."""
        require_at_least("smooth", smooth, 0)
        return self.index(0.5, 0.5, smooth / 2)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 1 where the whole is nothing."""
    return (part / whole.clamp_min(EPSILON)).where(whole > EPSILON, 1)


def overlap(
    pixels: Pixels,
    *,
    include_background: bool = True,
    skip_absent: bool = False,
    squared: bool = False,
) -> Overlap:
    """Counts of the pixels; ``squared``: of squared errors in ``fp`` and ``fn``.

    With ``squared``, 2 tp + fp + fn is the sum of p^2 and y^2.

    Raises:
        ValueError: ``include_background`` is False where no channel is the background.
    """
    p, y = pixels.probabilities(), pixels.one_hot()
    inside, outside = y * pixels.weights, (1 - y) * pixels.weights
    wrong_inside, wrong_outside = (1 - p, p) if not squared else ((1 - p) ** 2, p**2)
    positives = inside.sum(dim=2)
    return Overlap(
        tp=(p * inside).sum(dim=2),
        fp=(wrong_outside * outside).sum(dim=2),
        fn=(wrong_inside * inside).sum(dim=2),
        positives=positives,
        negatives=outside.sum(dim=2),
        weights=average_weights(pixels, include_background, positives if skip_absent else None),
    )


def average_weights(
    pixels: Pixels, include_background: bool, positives: Tensor | None = None
) -> Tensor:
    """``[B, C]``: what each class of each image counts in the average over them.

    Args:
        pixels: B images.
        include_background: see the module.
        positives: ``[B, C]``, pixels of each class, to leave out those without any; None: none is.

    Raises:
        ValueError: ``include_background`` is False where no channel is the background.
    """
    if not (include_background or pixels.exclusive):
        raise ValueError(
            "include_background=False is of mode 'multiclass', whose class 0 is the background; "
            "give a channel that is not to count the class weight 0"
        )
    classes = pixels.class_weights.clone()
    if not include_background:
        classes[0] = 0
    weights = classes * (pixels.weights.sum(dim=2) > 0)
    return weights if positives is None else weights * (positives > 0)
