"""The mask branch: a mask for each positive RoI or detection (He et al., Mask R-CNN, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from instseg.losses import mask_loss
from instseg.models.detection.roi_boxes import SampledRoIs
from instseg.models.heads import MaskPredictor
from instseg.ops import MultiscaleRoIAlign, mask_targets
from instseg.structures import Instances, RoIMasks


class RoIMaskHead(nn.Module):
    """Masks of side 2S from pooled maps of side S.

    Args:
        pooler: cuts the boxes out of the features.
        body: pooled map ``[R, C, S, S]`` to ``[R, channels, S, S]``.
        predictor: to one mask of the RoI's own class.
    """

    def __init__(
        self, pooler: MultiscaleRoIAlign, body: nn.Module, predictor: MaskPredictor
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.body = body
        self.predictor = predictor

    def forward(self, features: Sequence[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Logits ``[R, M, M]`` for per-image boxes of classes ``labels`` ``[R]``."""
        return self.predictor(self.body(self.pooler(features, boxes)), labels).float()

    def loss(
        self,
        features: Sequence[Tensor],
        samples: Sequence[SampledRoIs],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """``loss_mask`` of the positive RoIs.

        Raises:
            ValueError: a target has objects but no masks.
        """
        boxes = [s.boxes[: len(s.matched)] for s in samples]
        labels = torch.cat([s.labels[: len(s.matched)] - 1 for s in samples])
        if len(labels) == 0:
            # Keeps the head in the graph, so that every process of a group has its gradients.
            zero = sum(p.sum() for p in self.parameters() if p.requires_grad) * 0.0
            return {"loss_mask": torch.as_tensor(zero, device=labels.device)}
        logits = self(features, boxes, labels)
        wanted = [
            self._targets(target, sample.matched, box, logits.shape[-1])
            for target, sample, box in zip(targets, samples, boxes, strict=True)
            if len(box)
        ]
        return {"loss_mask": mask_loss(logits, torch.cat(wanted))}

    def _targets(self, target: Instances, matched: Tensor, boxes: Tensor, size: int) -> Tensor:
        if target.masks is None or isinstance(target.masks, RoIMasks):
            raise ValueError("a mask head needs targets with SparseMasks or BitMasks")
        return mask_targets(target.masks, matched, boxes, size, aligned=self.pooler.aligned)

    def predict(
        self, features: Sequence[Tensor], detections: Sequence[Instances]
    ) -> list[Instances]:
        """The detections with their masks."""
        labels = torch.cat([d.labels for d in detections])
        probs = self(features, [d.boxes for d in detections], labels).sigmoid()
        return [
            replace(d, masks=RoIMasks(p, aligned=self.pooler.aligned))
            for d, p in zip(detections, probs.split([len(d) for d in detections]), strict=True)
        ]
