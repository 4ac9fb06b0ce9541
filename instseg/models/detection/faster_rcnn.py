"""Faster R-CNN (Ren et al., 2015) on a feature pyramid (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.backbones import Backbone
from instseg.models.detection.roi_boxes import RoIBoxHead, SampledRoIs
from instseg.models.detection.rpn import RegionProposalNetwork
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances


class FasterRCNN(nn.Module):
    """Backbone, neck, region proposals, box head.

    Args:
        preprocess: normalises and pads the images.
        backbone: images to feature maps.
        neck: feature maps to maps of one width.
        rpn: maps to proposals.
        box_head: proposals to detections.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: Backbone,
        neck: FPN,
        rpn: RegionProposalNetwork,
        box_head: RoIBoxHead,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.box_head = box_head

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses with targets, detections without.

        Args:
            images: ``[C, H, W]`` each, of any sizes: uint8, uint16, or floating in 0..1.
            targets: the objects of each image.

        Returns:
            With targets, scalar losses whose sum is to be trained: ``loss_objectness``,
            ``loss_rpn_box_reg``, ``loss_classifier``, ``loss_box_reg`` (and ``loss_mask`` of a
            Mask R-CNN). Without, the detections of each image in its own coordinates.

        Raises:
            ValueError: images and targets differ in number, or an image's size is not that of
                its target.
        """
        if targets is not None:
            _check_targets(images, targets)
        batch = self.preprocess(images)
        features = self.neck(self.backbone(batch.tensor))
        if targets is not None:
            return self.losses(batch, features, targets)
        return self.detect(batch, features)

    def losses(
        self, batch: ImageBatch, features: list[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """The losses of all parts."""
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
        """The losses of what is computed on the sampled RoIs."""
        return self.box_head.loss(features, samples, targets)

    def detect(self, batch: ImageBatch, features: list[Tensor]) -> list[Instances]:
        """The detections of each image."""
        output = self.rpn(batch, features)
        proposals = self.rpn.propose(output, batch.sizes, self.rpn.inference_limits)
        return self.box_head.detect(features, proposals, batch.sizes)


def _check_targets(images: Sequence[Tensor], targets: Sequence[Instances]) -> None:
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} images but {len(targets)} targets")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        if tuple(image.shape[-2:]) != tuple(target.image_size):
            raise ValueError(
                f"image {i} is {tuple(image.shape[-2:])} (height, width), "
                f"but its target is for {tuple(target.image_size)}"
            )
