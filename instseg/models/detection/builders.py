"""Named R-CNN models: the published combinations of parts.

``torchvision=True`` builds the model with the conventions of torchvision's checkpoints (RoIAlign
without the half-pixel shift, rounded anchors, masks pasted into whole-pixel boxes), so that weights
converted by `instseg.models.foreign.torchvision_rcnn` give torchvision's outputs.
"""

from __future__ import annotations

from torch import nn

from instseg.models.anchors import AnchorGenerator
from instseg.models.backbones import ResNet
from instseg.models.detection.faster_rcnn import FasterRCNN
from instseg.models.detection.mask_rcnn import MaskRCNN
from instseg.models.detection.roi_boxes import RoIBoxHead
from instseg.models.detection.roi_masks import RoIMaskHead
from instseg.models.detection.rpn import RegionProposalNetwork
from instseg.models.heads import (
    BoxPredictor,
    ConvFCBoxBody,
    FCBoxBody,
    FCNMaskBody,
    MaskPredictor,
    RPNHead,
)
from instseg.models.layers import Norm
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.ops import MultiscaleRoIAlign

_ANCHOR_SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
_ASPECT_RATIOS = (0.5, 1.0, 2.0)


def faster_rcnn_resnet50_fpn(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> FasterRCNN:
    """Faster R-CNN with ResNet-50 and FPN (Lin et al., 2017); frozen batch norm."""
    backbone = ResNet(50, norm="frozen", freeze_at=freeze_at)
    return FasterRCNN(*_parts(backbone, num_classes, torchvision, norm=None))


def mask_rcnn_resnet50_fpn(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> MaskRCNN:
    """Mask R-CNN with ResNet-50 and FPN (He et al., 2017); frozen batch norm."""
    backbone = ResNet(50, norm="frozen", freeze_at=freeze_at)
    parts = _parts(backbone, num_classes, torchvision, norm=None)
    return MaskRCNN(*parts, _mask_head(parts[2], num_classes, torchvision, norm=None))


def faster_rcnn_resnet50_fpn_v2(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> FasterRCNN:
    """Faster R-CNN after Li et al. (2021, arXiv:2111.11429): live batch norm everywhere."""
    backbone = ResNet(50, norm="live", freeze_at=freeze_at)
    return FasterRCNN(*_parts(backbone, num_classes, torchvision, norm=nn.BatchNorm2d))


def mask_rcnn_resnet50_fpn_v2(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> MaskRCNN:
    """Mask R-CNN after Li et al. (2021, arXiv:2111.11429): live batch norm everywhere."""
    backbone = ResNet(50, norm="live", freeze_at=freeze_at)
    parts = _parts(backbone, num_classes, torchvision, norm=nn.BatchNorm2d)
    return MaskRCNN(*parts, _mask_head(parts[2], num_classes, torchvision, norm=nn.BatchNorm2d))


def _parts(
    backbone: ResNet, num_classes: int, torchvision: bool, *, norm: Norm | None
) -> tuple[Preprocess, ResNet, FPN, RegionProposalNetwork, RoIBoxHead]:
    """With ``norm``, the deeper heads of the second version; without, those of the first."""
    neck = FPN(backbone.channels, backbone.strides, norm=norm)
    anchors = AnchorGenerator(_ANCHOR_SIZES, _ASPECT_RATIOS, neck.strides, torchvision=torchvision)
    rpn_head = RPNHead(neck.channels, anchors.num_anchors, depth=1 if norm is None else 2)
    pooler = MultiscaleRoIAlign(neck.strides[:-1], 7, aligned=not torchvision)
    body = (
        FCBoxBody(neck.channels, 7) if norm is None else ConvFCBoxBody(neck.channels, 7, norm=norm)
    )
    box_head = RoIBoxHead(pooler, body, BoxPredictor(body.channels, num_classes))
    return Preprocess(), backbone, neck, RegionProposalNetwork(anchors, rpn_head), box_head


def _mask_head(neck: FPN, num_classes: int, torchvision: bool, *, norm: Norm | None) -> RoIMaskHead:
    body = FCNMaskBody(neck.channels, norm=norm)
    return RoIMaskHead(
        MultiscaleRoIAlign(neck.strides[:-1], 14, aligned=not torchvision),
        body,
        MaskPredictor(body.channels, num_classes),
    )
