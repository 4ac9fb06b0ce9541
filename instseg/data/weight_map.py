"""U-Net's weight of each pixel in the loss: class balance, and the gaps between cells.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation"
(MICCAI 2015), section 3, equation 2:

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

with the distances d1 and d2 to the borders of the nearest and the second nearest cell. Only the
background has the second term; the distance to a cell is that of pixel centres, to the nearest
pixel of the cell, and thus 1 right beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from instseg.ops.distance_transform import distance_transform
from instseg.structures.semantic_map import IGNORE

# Cells further away than this many sigma count as infinitely far.
_REACH = 5.0

FloatMap = npt.NDArray[np.float32]


class UNetWeights:
    """The weight map of equation 2.

    Args:
        w0: weight of the narrowest gaps, >= 0; 0 leaves the class balance alone.
        sigma: width of the gaps that matter, in pixels, > 0.
        class_weights: w_c of each class, > 0, such as a whole data set's balance; None balances
            the classes of each map by themselves, see `class_balance`.
        max_class_weight: cap on w_c, >= 1.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        *,
        class_weights: Sequence[float] | None = None,
        max_class_weight: float = 10.0,
    ) -> None:
        if not 0 <= w0 < math.inf:
            raise ValueError(f"w0 must be at least 0 and finite, got {w0}")
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be over 0 pixels and finite, got {sigma}")
        if class_weights is not None and not all(0 < w < math.inf for w in class_weights):
            raise ValueError(f"class_weights must be over 0 and finite, got {class_weights}")
        if not max_class_weight >= 1:
            raise ValueError(f"max_class_weight must be at least 1, got {max_class_weight}")
        self.w0, self.sigma, self.max_class_weight = w0, sigma, max_class_weight
        self.class_weights = None if class_weights is None else tuple(class_weights)

    def __call__(self, classes: npt.NDArray[np.uint8], cells: npt.NDArray[np.int32]) -> FloatMap:
        """The weights of one image.

        Args:
            classes: ``[H, W]``, the class of each pixel; `IGNORE` where it is unknown.
            cells: ``[H, W]``, 0 outside of cells, and another number in each cell.

        Returns:
            ``float32 [H, W]``; 0 where the class is `IGNORE`.

        Raises:
            ValueError: a class has no weight in ``class_weights``.
        """
        if self.class_weights is None:
            balance = class_balance(classes, self.max_class_weight)
        else:
            balance = self._fixed(classes)
        weights = balance[classes]
        if self.w0 > 0:
            gaps = gap_weights(cells, self.w0, self.sigma)
            weights += np.where(classes == IGNORE, np.float32(0), gaps)
        return weights

    def _fixed(self, classes: npt.NDArray[np.uint8]) -> FloatMap:
        assert self.class_weights is not None
        given = len(self.class_weights)
        if (strange := (classes >= given) & (classes != IGNORE)).any():
            raise ValueError(
                f"class_weights has {given} weights, but the map has class "
                f"{classes[strange].max()}; give one weight for each class"
            )
        table = np.zeros(256, dtype=np.float32)
        table[:given] = np.minimum(self.class_weights, self.max_class_weight)
        return table


def class_balance(classes: npt.NDArray[np.uint8], max_weight: float = 10.0) -> FloatMap:
    """The weight w_c of each class that balances the classes of a map.

    Of n pixels of known class, n_c of class c, and K classes that occur, ``w_c = n / (K n_c)``, at
    most ``max_weight``: all classes have the same sum of weights, and the mean weight is 1, as long
    as none reaches the cap.

    Args:
        classes: ``[H, W]``, with `IGNORE`.
        max_weight: the cap.

    Returns:
        ``float32 [256]``: 0 of classes that do not occur, and of `IGNORE`.
    """
    counts = np.bincount(classes.reshape(-1), minlength=256).astype(np.float64)
    counts[IGNORE] = 0
    present = counts > 0
    table = np.zeros(256, dtype=np.float32)
    table[present] = np.minimum(counts.sum() / (present.sum() * counts[present]), max_weight)
    return table


def gap_weights(cells: npt.NDArray[np.int32], w0: float = 10.0, sigma: float = 5.0) -> FloatMap:
    """The second term of equation 2.

    Cells over 5 sigma away count as infinitely far: the result is too small there by less than
    ``w0 exp(-12.5)``, which is 3.8e-6 w0, and exact elsewhere. So only the surroundings of each
    cell are looked at.

    Args:
        cells: ``[H, W]``, 0 outside of cells, and another number in each cell.
        w0: weight of the narrowest gaps.
        sigma: in pixels.

    Returns:
        ``float32 [H, W]`` in [0, w0]; 0 inside cells, and everywhere if there are fewer than two.
    """
    nearest = np.full(cells.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    reach = math.ceil(_REACH * sigma)
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is None:
            continue
        around = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in box)
        outside = (cells[around] != number).astype(np.uint8)
        distance = distance_transform(outside)
        first, runner_up = nearest[around], second[around]
        np.minimum(runner_up, np.maximum(first, distance), out=runner_up)
        np.minimum(first, distance, out=first)
    weights = np.zeros(cells.shape, dtype=np.float32)
    between = (cells == 0) & np.isfinite(second)
    total = nearest[between] + second[between]
    weights[between] = w0 * np.exp(total**2 / (-2 * sigma**2))
    return weights


def components(
    classes: npt.NDArray[np.integer], cell_classes: Sequence[int]
) -> npt.NDArray[np.int32]:
    """The cells of a map that knows classes alone: 4-connected regions of one class.

    Args:
        classes: ``[H, W]``.
        cell_classes: the classes whose regions are cells.

    Returns:
        ``int32 [H, W]``: 0 outside of cells, and another number in each.
    """
    cells = np.zeros(classes.shape, dtype=np.int32)
    for wanted in cell_classes:
        region = (classes == wanted).astype(np.uint8)
        _, numbers = cv2.connectedComponents(region, connectivity=4, ltype=cv2.CV_32S)
        cells += np.where(region, numbers + cells.max(), 0).astype(np.int32)
    return cells
