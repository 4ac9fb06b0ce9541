"""Faster R-CNN (Ren et al., 2015) on a feature pyramid (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from instseg.models.backbones import Backbone
from instseg.models.detection.detector import Detector
from instseg.models.detection.roi_boxes import RoIBoxHead, SampledRoIs
from instseg.models.detection.rpn import RegionProposalNetwork
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances


class FasterRCNN(Detector):
    """Backbone, neck, region proposals, box head.

    Args:
        preprocess: normalises and pads the images.
        backbone: images to feature maps.
        neck: feature maps to maps of one width.
        rpn: maps to proposals.
        box_head: proposals to detections.
    """

    class_layers = ("box_head.predictor.*", "mask_head.predictor.logits.*")

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: Backbone,
        neck: FPN,
        rpn: RegionProposalNetwork,
        box_head: RoIBoxHead,
    ) -> None:
        super().__init__(preprocess, backbone, neck)
        self.rpn = rpn
        self.box_head = box_head

    def losses(
        self, batch: ImageBatch, features: list[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_objectness``, ``loss_rpn_box_reg``, and those of `roi_losses`."""
        output = self.rpn(batch, features)
        losses = self.rpn.loss(output, targets)
        proposals = self.rpn.propose(output, batch.sizes, self.rpn.training_limits)
        samples = self.box_head.sample(proposals, targets)
        return losses | self.roi_losses(features, samples, targets)

    def roi_losses(
        self,
        features: list[Tensor],
        samples: Sequence[SampledRoIs],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box_reg`` (and ``loss_mask`` of a Mask R-CNN)."""
        return self.box_head.loss(features, samples, targets)

    def detect(self, batch: ImageBatch, features: list[Tensor]) -> list[Instances]:
        """The detections of each image."""
        output = self.rpn(batch, features)
        proposals = self.rpn.propose(output, batch.sizes, self.rpn.inference_limits)
        return self.box_head.detect(features, proposals, batch.sizes)
