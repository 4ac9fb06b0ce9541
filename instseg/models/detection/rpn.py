"""Region proposal network: anchors, objectness, proposals (Ren et al., Faster R-CNN, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.losses import rpn_losses
from instseg.models.anchors import AnchorGenerator
from instseg.models.box_coder import BoxCoder
from instseg.models.heads import RPNHead
from instseg.models.matcher import Matcher, Sampler
from instseg.ops import batched_nms, clip_boxes, large_boxes
from instseg.structures import ImageBatch, Instances
from instseg.structures.geometry import Size


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals go on.

    Args:
        before_nms: best-scored anchors of each level and image.
        after_nms: proposals of each image.
    """

    before_nms: int
    after_nms: int


@dataclass
class RPNOutput:
    """What the head said of every anchor; A counts the anchors of all levels."""

    anchors: list[Tensor]
    """Of each level: ``[A_l, 4]``, the same for every image."""
    objectness: list[Tensor]
    """Of each level: logits ``[B, A_l]``."""
    offsets: list[Tensor]
    """Of each level: ``[B, A_l, 4]``."""


class RegionProposalNetwork(nn.Module):
    """Class-agnostic boxes that may hold an object.

    Args:
        anchors: one set of sizes for each level of the features.
        head: its number of anchors must be that of ``anchors``.
        matcher: assigns anchors to objects.
        sampler: draws anchors for the loss.
        training_limits: proposals kept when targets are given.
        inference_limits: proposals kept otherwise.
        nms_threshold: IoU above which the worse of two proposals of one level goes.
        min_size: proposals with a shorter side in pixels are dropped.
    """

    def __init__(
        self,
        anchors: AnchorGenerator,
        head: RPNHead,
        *,
        matcher: Matcher | None = None,
        sampler: Sampler | None = None,
        training_limits: ProposalLimits | None = None,
        inference_limits: ProposalLimits | None = None,
        nms_threshold: float = 0.7,
        min_size: float = 1e-3,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.head = head
        self.box_coder = BoxCoder()
        self.matcher = matcher or Matcher(0.7, 0.3, allow_low_quality=True)
        self.sampler = sampler or Sampler(256, 0.5)
        self.training_limits = training_limits or ProposalLimits(2000, 2000)
        self.inference_limits = inference_limits or ProposalLimits(1000, 1000)
        self.nms_threshold = nms_threshold
        self.min_size = min_size

    def forward(self, batch: ImageBatch, features: Sequence[Tensor]) -> RPNOutput:
        """Run the head over every level."""
        objectness, offsets = self.head(features)
        image_size = (batch.tensor.shape[-2], batch.tensor.shape[-1])
        feature_sizes = [(f.shape[-2], f.shape[-1]) for f in features]
        return RPNOutput(self.anchors(feature_sizes, image_size), objectness, offsets)

    @torch.no_grad()
    def propose(
        self, output: RPNOutput, sizes: Sequence[Size], limits: ProposalLimits
    ) -> list[Tensor]:
        """Proposals ``[K_b, 4]`` of each image, best first; no gradient flows into them."""
        boxes, scores, levels = [], [], []
        per_level = zip(output.anchors, output.objectness, output.offsets, strict=True)
        for level, (anchors, objectness, offsets) in enumerate(per_level):
            best, index = objectness.topk(min(limits.before_nms, objectness.shape[1]), dim=1)
            chosen = offsets.gather(1, index[..., None].expand(-1, -1, 4)).float()
            boxes.append(self.box_coder.decode(chosen, anchors[index]))
            scores.append(best.float().sigmoid())
            levels.append(torch.full_like(index, level))
        all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        all_levels = torch.cat(levels, dim=1)
        return [
            self._select(*image, size=size, keep=limits.after_nms)
            for *image, size in zip(all_boxes, all_scores, all_levels, sizes, strict=True)
        ]

    def _select(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, *, size: Size, keep: int
    ) -> Tensor:
        boxes = clip_boxes(boxes, size)
        large = large_boxes(boxes, self.min_size).nonzero()[:, 0]
        boxes, scores, levels = boxes[large], scores[large], levels[large]
        return boxes[batched_nms(boxes, scores, levels, self.nms_threshold)[:keep]]

    def loss(self, output: RPNOutput, targets: Sequence[Instances]) -> dict[str, Tensor]:
        """``loss_objectness`` and ``loss_rpn_box_reg`` of a sample of anchors."""
        anchors = torch.cat(output.anchors)
        positives, negatives, encoded = [], [], []
        for image, target in enumerate(targets):
            kind, matched = self.matcher(anchors, target)
            positive, negative = self.sampler(kind)
            gt_boxes = target.boxes.to(anchors)[matched[positive]]
            encoded.append(self.box_coder.encode(gt_boxes, anchors[positive]))
            positives.append(positive + image * len(anchors))
            negatives.append(negative + image * len(anchors))
        classification, regression = rpn_losses(
            torch.cat(output.objectness, dim=1).flatten(),
            torch.cat(output.offsets, dim=1).flatten(0, 1),
            torch.cat(positives),
            torch.cat(negatives),
            torch.cat(encoded),
        )
        return {"loss_objectness": classification, "loss_rpn_box_reg": regression}
