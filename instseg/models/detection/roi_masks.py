"""The mask branch: a mask for each positive RoI or detection (He et al., Mask R-CNN, 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from instseg.losses import mask_loss
from instseg.models.detection.roi_boxes import SampledRoIs
from instseg.models.heads import MaskPredictor
from instseg.models.heads.unet_mask import ClassMaskPredictor, TwoScaleRoIAlign, UNetMaskBody
from instseg.models.layers import Norm
from instseg.ops import MultiscaleRoIAlign, mask_targets
from instseg.structures import Instances, RoIMasks


class RoIMaskHead(nn.Module):
    """Masks of side M from what is pooled of each RoI.

    Args:
        pooler: cuts the boxes out of the features.
        body: what the pooler gives to ``[R, channels, S, S]``.
        predictor: that to one mask ``[R, M, M]`` of the RoI's own class.
        bce: weight of the binary cross-entropy in the loss.
        dice: weight of soft Dice in the loss.

    Raises:
        ValueError: a negative weight, or both 0.
    """

    def __init__(
        self,
        pooler: MultiscaleRoIAlign | TwoScaleRoIAlign,
        body: nn.Module,
        predictor: MaskPredictor | ClassMaskPredictor,
        *,
        bce: float = 1.0,
        dice: float = 0.0,
    ) -> None:
        super().__init__()
        if min(bce, dice) < 0 or bce + dice == 0:
            raise ValueError(
                f"bce and dice must be loss weights of at least 0, one of them above, got {bce} "
                f"and {dice}: choose for example bce=1, dice=1"
            )
        self.pooler = pooler
        self.body = body
        self.predictor = predictor
        self.bce = bce
        self.dice = dice

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
        loss = mask_loss(logits, torch.cat(wanted), bce=self.bce, dice=self.dice)
        return {"loss_mask": loss}

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


def unet_mask_head(
    in_channels: int,
    strides: Sequence[int],
    num_classes: int,
    *,
    depth: int = 2,
    resolution: int = 56,
    channels: int = 256,
    class_agnostic: bool = False,
    norm: Norm | None = None,
    aligned: bool = True,
    bce: float = 1.0,
    dice: float = 1.0,
) -> RoIMaskHead:
    """A U-Net for the mask of each RoI, with a skip from the finest level of the pyramid.

    Args:
        in_channels: of the pyramid's maps.
        strides: of the levels pooled from.
        num_classes: C, without the background.
        depth: see `UNetMaskBody`.
        resolution: M, side of the masks; see `UNetMaskBody`.
        channels: see `UNetMaskBody`.
        class_agnostic: one mask for an RoI, whatever its class.
        norm: see `UNetMaskBody`.
        aligned: see `roi_align`.
        bce: see `RoIMaskHead`.
        dice: see `RoIMaskHead`.

    Raises:
        ValueError: as the parts do.
    """
    body = UNetMaskBody(channels, depth=depth, resolution=resolution, norm=norm)
    pooler = TwoScaleRoIAlign(
        in_channels,
        strides,
        context=(body.in_channels, body.pooled_size),
        detail=(body.detail_channels, body.resolution),
        aligned=aligned,
    )
    predictor = ClassMaskPredictor(body.channels, num_classes, class_agnostic=class_agnostic)
    return RoIMaskHead(pooler, body, predictor, bce=bce, dice=dice)
