"""The box branch: pooled proposals to classes and refined boxes (Girshick, Fast R-CNN, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.losses import box_losses
from instseg.models.box_coder import BoxCoder
from instseg.models.heads import BoxPredictor
from instseg.models.matcher import Matcher, Sampler
from instseg.ops import MultiscaleRoIAlign, batched_nms, clip_boxes, large_boxes
from instseg.structures import Instances
from instseg.structures.geometry import Size


@dataclass
class SampledRoIs:
    """The RoIs of one image drawn for training, positives first."""

    boxes: Tensor
    """``[R, 4]``."""
    matched: Tensor
    """``int64 [P]``: the object of each positive, an index into the image's targets."""
    labels: Tensor
    """``int64 [R]``: class index + 1 for the P positives, 0 (background) for the rest."""


class RoIBoxHead(nn.Module):
    """Class and refined box of each proposal.

    Args:
        pooler: cuts the proposals out of the features.
        body: pooled map ``[R, C, S, S]`` to ``[R, channels]``.
        predictor: the two output layers.
        matcher: assigns proposals to objects.
        sampler: draws proposals for the loss.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_detections: at most this many an image.
    """

    def __init__(
        self,
        pooler: MultiscaleRoIAlign,
        body: nn.Module,
        predictor: BoxPredictor,
        *,
        matcher: Matcher | None = None,
        sampler: Sampler | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.body = body
        self.predictor = predictor
        self.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = matcher or Matcher(0.5, 0.5)
        self.sampler = sampler or Sampler(512, 0.25)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def forward(self, features: Sequence[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[R, C + 1]`` and offsets ``[R, C + 1, 4]`` of per-image boxes."""
        logits, offsets = self.predictor(self.body(self.pooler(features, boxes)))
        return logits.float(), offsets.float()

    @torch.no_grad()
    def sample(
        self, proposals: Sequence[Tensor], targets: Sequence[Instances]
    ) -> list[SampledRoIs]:
        """Draw RoIs of each image from its proposals and its objects' own boxes."""
        samples = []
        for boxes, target in zip(proposals, targets, strict=True):
            own = target.boxes.to(boxes)[~target.crowd.to(boxes.device)]
            boxes = torch.cat([boxes, own])
            kind, matched = self.matcher(boxes, target)
            positive, negative = self.sampler(kind)
            chosen = torch.cat([positive, negative])
            labels = torch.zeros(len(chosen), dtype=torch.int64, device=boxes.device)
            objects = matched[positive]
            labels[: len(positive)] = target.labels.to(boxes.device)[objects] + 1
            samples.append(SampledRoIs(boxes[chosen], objects, labels))
        return samples

    def loss(
        self,
        features: Sequence[Tensor],
        samples: Sequence[SampledRoIs],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box_reg`` of the sampled RoIs."""
        logits, offsets = self(features, [s.boxes for s in samples])
        encoded = [
            self.box_coder.encode(
                target.boxes.to(sample.boxes)[sample.matched], sample.boxes[: len(sample.matched)]
            )
            for sample, target in zip(samples, targets, strict=True)
        ]
        labels = torch.cat([s.labels for s in samples])
        classification, regression = box_losses(logits, offsets, labels, torch.cat(encoded))
        return {"loss_classifier": classification, "loss_box_reg": regression}

    def detect(
        self, features: Sequence[Tensor], proposals: list[Tensor], sizes: Sequence[Size]
    ) -> list[Instances]:
        """Detections of each image, best first, clipped to the image."""
        logits, offsets = self(features, proposals)
        scores = logits.softmax(dim=1)[:, 1:]
        boxes = self.box_coder.decode(offsets[:, 1:], torch.cat(proposals)[:, None])
        counts = [len(p) for p in proposals]
        return [
            self._select(*image, size=size)
            for *image, size in zip(boxes.split(counts), scores.split(counts), sizes, strict=True)
        ]

    def _select(self, boxes: Tensor, scores: Tensor, *, size: Size) -> Instances:
        rows, labels = (scores > self.score_threshold).nonzero().unbind(1)
        boxes, scores = clip_boxes(boxes[rows, labels], size), scores[rows, labels]
        large = large_boxes(boxes, 1e-2).nonzero()[:, 0]
        boxes, scores, labels = boxes[large], scores[large], labels[large]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.max_detections]
        return Instances(size, boxes[keep], labels[keep], scores=scores[keep])
