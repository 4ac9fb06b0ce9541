"""Mask R-CNN (He et al., 2017): Faster R-CNN with a mask for each detection."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from instseg.models.backbones import Backbone
from instseg.models.detection.faster_rcnn import FasterRCNN
from instseg.models.detection.roi_boxes import RoIBoxHead, SampledRoIs
from instseg.models.detection.roi_masks import RoIMaskHead
from instseg.models.detection.rpn import RegionProposalNetwork
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances


class MaskRCNN(FasterRCNN):
    """Backbone, neck, region proposals, box head, mask head.

    Args:
        preprocess: normalises and pads the images.
        backbone: images to feature maps.
        neck: feature maps to maps of one width.
        rpn: maps to proposals.
        box_head: proposals to detections.
        mask_head: detections to masks.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: Backbone,
        neck: FPN,
        rpn: RegionProposalNetwork,
        box_head: RoIBoxHead,
        mask_head: RoIMaskHead,
    ) -> None:
        super().__init__(preprocess, backbone, neck, rpn, box_head)
        self.mask_head = mask_head

    def roi_losses(
        self,
        features: list[Tensor],
        samples: Sequence[SampledRoIs],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """The losses of the box head and of the mask head."""
        losses = super().roi_losses(features, samples, targets)
        return losses | self.mask_head.loss(features, samples, targets)

    def detect(self, batch: ImageBatch, features: list[Tensor]) -> list[Instances]:
        """The detections of each image, with `RoIMasks`."""
        return self.mask_head.predict(features, super().detect(batch, features))
