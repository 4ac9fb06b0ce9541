"""One-stage detectors: a dense head on the feature maps, and what all such heads share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.models.backbones import Backbone
from instseg.models.detection.detector import Detector
from instseg.models.preprocess import Preprocess
from instseg.ops import batched_nms, large_boxes
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size


class DenseHead(nn.Module, ABC):
    """Predicts objects at every position of its feature maps.

    Args:
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_detections: at most this many an image.

    Attributes:
        class_layers: as `Detector.class_layers`, in the names of the head.
    """

    class_layers: Sequence[str]

    def __init__(
        self, *, score_threshold: float, nms_threshold: float, max_detections: int
    ) -> None:
        super().__init__()
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The layers of the head: no control flow that depends on data."""

    @abstractmethod
    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Scalar losses; every parameter of the head is in their graph, whatever the targets."""

    @abstractmethod
    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image, best first, clipped to it."""


class OneStageDetector(Detector):
    """Backbone, neck, dense head.

    Args:
        preprocess: normalises and pads the images.
        backbone: images to feature maps.
        neck: feature maps to those that the head reads.
        head: feature maps to losses or detections.
    """

    def __init__(
        self, preprocess: Preprocess, backbone: Backbone, neck: nn.Module, head: DenseHead
    ) -> None:
        super().__init__(preprocess, backbone, neck)
        self.head = head
        self.class_layers = [f"head.{pattern}" for pattern in head.class_layers]

    @property
    def networks(self) -> list[nn.Module]:
        """See `Detector.networks`."""
        return [*super().networks, self.head.network]

    def losses(
        self, batch: ImageBatch, features: list[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """The losses of the head."""
        return self.head.loss(batch, features, targets)

    def detect(self, batch: ImageBatch, features: list[Tensor]) -> list[Instances]:
        """The detections of each image."""
        return self.head.detect(batch, features)


@dataclass
class Candidates:
    """K scored boxes of a whole batch, in any order, before the duplicates go."""

    image: Tensor
    """``int64 [K]``: index of the image."""
    boxes: Tensor
    """``float32 [K, 4]``."""
    scores: Tensor
    """``float32 [K]`` in [0, 1]."""
    labels: Tensor
    """``int64 [K]``, class indices from 0."""
    source: Tensor
    """``int64 [K]``: which anchor or cell of its image each is from."""

    def __getitem__(self, index: Tensor) -> Candidates:
        return Candidates(
            self.image[index],
            self.boxes[index],
            self.scores[index],
            self.labels[index],
            self.source[index],
        )


def keep_best(
    candidates: Candidates,
    sizes: Sequence[Size],
    *,
    nms_threshold: float,
    max_detections: int,
    min_size: float = 1e-2,
) -> tuple[list[Instances], list[Tensor]]:
    """Clip, suppress duplicates of a class, keep the best of each image.

    Args:
        candidates: of B images.
        sizes: (height, width) of each image.
        nms_threshold: IoU above which the worse of two boxes of one class and image goes.
        max_detections: at most this many an image.
        min_size: boxes with a shorter side in pixels are dropped.

    Returns:
        Detections of each image, best first, and of each image where they are from
        (`Candidates.source`).
    """
    limits = candidates.boxes.new_tensor([[w, h] for h, w in sizes])[candidates.image]
    boxes = candidates.boxes.clamp(min=0).minimum(limits.repeat(1, 2))
    candidates = Candidates(
        candidates.image, boxes, candidates.scores, candidates.labels, candidates.source
    )[large_boxes(boxes, min_size)]
    groups = candidates.labels * len(sizes) + candidates.image
    found = candidates[
        batched_nms(candidates.boxes, candidates.scores, groups, nms_threshold)
    ]  # best first
    found = found[torch.argsort(found.image, stable=True)]
    counts = torch.bincount(found.image, minlength=len(sizes))
    rank = (
        torch.arange(len(found.image), device=counts.device)
        - (counts.cumsum(0) - counts)[found.image]
    )
    found = found[rank < max_detections]
    parts = counts.clamp(max=max_detections).tolist()
    detections = [
        Instances(size, *fields)
        for size, *fields in zip(
            sizes,
            found.boxes.split(parts),
            found.labels.split(parts),
            found.scores.split(parts),
            strict=True,
        )
    ]
    return detections, list(found.source.split(parts))
