"""The classes of the pixels of one image: what semantic networks learn from and return."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.structures.geometry import Size

Threshold = float | tuple[float, ...]
"""A least score: of all classes, or of each."""

IGNORE = 255
"""The label of pixels whose class is unknown, as in Pascal VOC and Cityscapes."""


@dataclass(eq=False)
class SemanticMap:
    """The class of every pixel of one image: ground truth, or a network's prediction.

    Args:
        labels: ``uint8 [H, W]``, classes from 0 that exclude each other; or ``uint8 [C, H, W]`` of
            0 and 1, one map for each of C classes that may overlap. `IGNORE` is what counts
            nowhere. Whether a class is the background is known to the data set, not here.
        scores: ``float [C, H, W]`` in [0, 1], probabilities of predictions; None for ground truth.
        weights: ``float [H, W]``, at least 0, what each pixel counts in the loss; None: all alike.
        threshold: of predictions: the score from which on a class that may overlap others, or the
            second of two that exclude each other, is in ``labels``; of C classes that may overlap
            also one for each.

    Raises:
        ValueError: a field's shape or dtype contradicts the above; the message names the field.
    """

    labels: Tensor
    scores: Tensor | None = None
    weights: Tensor | None = None
    threshold: Threshold = 0.5

    def __post_init__(self) -> None:
        shape = list(self.labels.shape)
        if self.labels.dtype != torch.uint8 or len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                f"labels must be uint8 [H, W] or [C, H, W], got {self.labels.dtype} {shape}"
            )
        size = self.image_size
        if (scores := self.scores) is not None and (
            not scores.is_floating_point()
            or scores.ndim != 3
            or tuple(scores.shape[1:]) != size
            or (self.is_multi_label and scores.shape != self.labels.shape)
        ):
            wanted = shape if self.is_multi_label else ["C", *size]
            raise ValueError(
                f"scores must be floating {wanted}, got {scores.dtype} {list(scores.shape)}"
            )
        if (weights := self.weights) is not None and (
            not weights.is_floating_point() or tuple(weights.shape) != size
        ):
            raise ValueError(
                f"weights must be floating {list(size)}, got {weights.dtype} {list(weights.shape)}"
            )

    @property
    def is_multi_label(self) -> bool:
        """Whether each class has a map of its own."""
        return self.labels.ndim == 3

    @property
    def image_size(self) -> Size:
        """(height, width) of the image."""
        return self.labels.shape[-2], self.labels.shape[-1]

    def to(self, device: torch.device | str) -> SemanticMap:
        """The map with every tensor on ``device``."""
        return replace(
            self,
            labels=self.labels.to(device),
            scores=None if self.scores is None else self.scores.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )

    def resized(self, size: Size) -> SemanticMap:
        """The map of the image resized to ``size`` (height, width).

        Predictions follow their scores (bilinear), from which the labels are found anew; ground
        truth takes the nearest pixel's.
        """
        if size == self.image_size:
            return self
        weights = None if self.weights is None else _nearest(self.weights[None], size)[0]
        if self.scores is None:
            maps = self.labels if self.is_multi_label else self.labels[None]
            labels = _nearest(maps, size)
            return SemanticMap(labels if self.is_multi_label else labels[0], weights=weights)
        scores = F.interpolate(
            self.scores[None].float(), size, mode="bilinear", align_corners=False, antialias=True
        )[0].clamp(0, 1)
        if self.is_multi_label:
            return SemanticMap.multi_label(scores, self.threshold)
        return SemanticMap.exclusive(scores, self.threshold)

    @classmethod
    def exclusive(cls, scores: Tensor, threshold: Threshold = 0.5) -> SemanticMap:
        """The best class of each pixel by its probabilities ``float [C, H, W]``.

        Of two classes, the first the background, the second where it has at least ``threshold``.

        Raises:
            ValueError: there is a threshold for each class.
        """
        if isinstance(threshold, tuple):
            raise ValueError(f"classes that exclude each other have one threshold, got {threshold}")
        labels = scores[1] >= threshold if len(scores) == 2 else scores.argmax(dim=0)
        return cls(labels.to(torch.uint8), scores, threshold=threshold)

    @classmethod
    def multi_label(cls, scores: Tensor, threshold: Threshold = 0.5) -> SemanticMap:
        """Every class where its probability, of ``float [C, H, W]``, is at least the threshold.

        Raises:
            ValueError: there are thresholds for another number of classes.
        """
        if isinstance(threshold, tuple):
            if len(threshold) != len(scores):
                raise ValueError(f"{len(threshold)} thresholds for {len(scores)} classes")
            reached = scores >= scores.new_tensor(threshold)[:, None, None]
        else:
            reached = scores >= threshold
        return cls(reached.to(torch.uint8), scores, threshold=threshold)


def _nearest(maps: Tensor, size: Size) -> Tensor:
    return F.interpolate(maps[None], size, mode="nearest-exact")[0]
