"""RetinaNet (Lin et al., Focal Loss for Dense Object Detection, 2017), with masks if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from instseg.losses.retinanet import (
    BACKGROUND,
    IGNORED,
    focal_classification_loss,
    giou_loss,
    offset_loss,
)
from instseg.models.anchors import AnchorGenerator
from instseg.models.backbones import ResNet
from instseg.models.box_coder import BoxCoder
from instseg.models.detection.one_stage import Candidates, DenseHead, OneStageDetector, keep_best
from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.heads.retinanet import RetinaNetConvs
from instseg.models.layers import Norm
from instseg.models.matcher import NEGATIVE, POSITIVE, Matcher
from instseg.models.necks import FPN
from instseg.models.preprocess import Preprocess
from instseg.structures import ImageBatch, Instances

BoxLoss = Literal["l1", "giou"]


@dataclass
class RetinaNetOutput:
    """What the head said of every anchor, level by level; A_l counts a level's anchors."""

    anchors: list[Tensor]
    """``[A_l, 4]``, the same for every image."""
    logits: list[Tensor]
    """``[B, A_l, C]``."""
    offsets: list[Tensor]
    """``[B, A_l, 4]``."""
    coefficients: list[Tensor]
    """``[B, A_l, K]`` before their tanh; no levels without masks."""


class RetinaNetHead(DenseHead):
    """Anchors, their classes, boxes and perhaps masks.

    Args:
        anchors: one set of sizes for each level of the features.
        convs: its number of anchors must be that of ``anchors``.
        masks: adds a mask to each detection; its number of prototypes must be that of ``convs``.
        box_loss: "l1" on the offsets, or "giou" on the boxes.
        matcher: assigns anchors to objects; None for the paper's 0.5 and 0.4, with each object's
            best anchors a positive however low their IoU is, as torchvision does.
        alpha: of the focal loss.
        gamma: likewise.
        before_nms: best-scored pairs of anchor and class of each level and image that go on.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_detections: at most this many an image.

    Raises:
        ValueError: parts that do not fit together, or an unknown ``box_loss``.
    """

    class_layers = ("convs.logits.*", "convs.coefficients.*", "masks.*")

    def __init__(
        self,
        anchors: AnchorGenerator,
        convs: RetinaNetConvs,
        *,
        masks: PrototypeMasks | None = None,
        box_loss: BoxLoss = "l1",
        matcher: Matcher | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        before_nms: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__(
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        if convs.num_anchors != anchors.num_anchors:
            raise ValueError(
                f"the convolutions are for {convs.num_anchors} anchors a position, "
                f"the anchor generator makes {anchors.num_anchors}"
            )
        if convs.num_prototypes != (masks.num_prototypes if masks else 0):
            raise ValueError(
                f"the convolutions are for {convs.num_prototypes} prototypes, "
                f"the masks have {masks.num_prototypes if masks else 0}"
            )
        if box_loss not in get_args(BoxLoss):
            raise ValueError(f"box_loss must be 'l1' or 'giou', got {box_loss!r}")
        self.anchors = anchors
        self.convs = convs
        self.masks = masks
        self.box_loss = box_loss
        self.box_coder = BoxCoder()
        self.matcher = matcher or Matcher(0.5, 0.4, allow_low_quality=True)
        self.alpha = alpha
        self.gamma = gamma
        self.before_nms = before_nms

    @property
    def network(self) -> nn.Module:
        """See `DenseHead.network`."""
        return self.convs

    def forward(self, batch: ImageBatch, features: Sequence[Tensor]) -> RetinaNetOutput:
        """Run the convolutions over every level."""
        image_size = (batch.tensor.shape[-2], batch.tensor.shape[-1])
        feature_sizes = [(f.shape[-2], f.shape[-1]) for f in features]
        return RetinaNetOutput(self.anchors(feature_sizes, image_size), *self.convs(features))

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_classifier``, ``loss_box_reg`` and, with masks, ``loss_mask``.

        Raises:
            ValueError: with masks, a target has objects but no masks.
        """
        output = self(batch, features)
        anchors = torch.cat(output.anchors)
        labels, matched = self.assign(anchors, targets)
        image, anchor = (labels >= 0).nonzero(as_tuple=True)
        objects = matched[image, anchor]
        counts = torch.bincount(image, minlength=len(targets)).tolist()
        gt_boxes = torch.cat(
            [t.boxes.to(anchors)[i] for t, i in zip(targets, objects.split(counts), strict=True)]
        )
        offsets = torch.cat(output.offsets, dim=1)[image, anchor].float()
        losses = {
            "loss_classifier": focal_classification_loss(
                torch.cat(output.logits, dim=1), labels, alpha=self.alpha, gamma=self.gamma
            ),
            "loss_box_reg": self._box_loss(offsets, anchors[anchor], gt_boxes, image, len(targets)),
        }
        if self.masks is not None:
            coefficients = torch.cat(output.coefficients, dim=1)[image, anchor]
            prototypes = self.masks(features[0])
            losses["loss_mask"] = self.masks.loss(
                prototypes, self.anchors.strides[0], coefficients, image, objects, targets
            )
        return losses

    @torch.no_grad()
    def assign(self, anchors: Tensor, targets: Sequence[Instances]) -> tuple[Tensor, Tensor]:
        """Give each anchor ``[A, 4]`` of each image a class and an object.

        Returns:
            ``int64 [B, A]`` of classes, `BACKGROUND` (-1) and `IGNORED` (-2), and ``int64 [B, A]``
            of indices into the image's target, which mean something where the class is >= 0.
        """
        labels = torch.full((len(targets), len(anchors)), BACKGROUND, device=anchors.device)
        matched = torch.zeros_like(labels)
        for row, objects, target in zip(labels, matched, targets, strict=True):
            kind, index = self.matcher(anchors, target)
            positive = kind == POSITIVE
            row[(kind != NEGATIVE) & ~positive] = IGNORED
            row[positive] = target.labels.to(anchors.device)[index[positive]]
            objects.copy_(index)
        return labels, matched

    def _box_loss(
        self, offsets: Tensor, anchors: Tensor, gt_boxes: Tensor, image: Tensor, num_images: int
    ) -> Tensor:
        if self.box_loss == "giou":
            return giou_loss(self.box_coder.decode(offsets, anchors), gt_boxes, image, num_images)
        return offset_loss(offsets, self.box_coder.encode(gt_boxes, anchors), image, num_images)

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image, best first, clipped to it."""
        output = self(batch, features)
        detections, sources = keep_best(
            self._candidates(output),
            batch.sizes,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )
        if self.masks is None:
            return detections
        coefficients = torch.cat(output.coefficients, dim=1)
        chosen = [c[source] for c, source in zip(coefficients, sources, strict=True)]
        prototypes = self.masks(features[0])
        return self.masks.predict(prototypes, self.anchors.strides[0], chosen, detections)

    def _candidates(self, output: RetinaNetOutput) -> Candidates:
        """The best pairs of anchor and class of each level, where they score enough."""
        logits, labels, sources = [], [], []
        start = 0
        for level in output.logits:
            num_anchors, num_classes = level.shape[1:]
            # The best pairs are pairs of the anchors whose best class is best: so the long list,
            # of all pairs, is never sorted.
            few = min(self.before_nms, num_anchors)
            anchor = level.amax(dim=2).topk(few, dim=1).indices
            pairs = level.gather(1, anchor[..., None].expand(-1, -1, num_classes)).flatten(1)
            best, pair = pairs.topk(min(self.before_nms, pairs.shape[1]), dim=1)
            logits.append(best)
            labels.append(pair % num_classes)
            sources.append(anchor.gather(1, pair // num_classes) + start)
            start += num_anchors
        scores = torch.cat(logits, dim=1).float().sigmoid()
        image, place = (scores > self.score_threshold).nonzero(as_tuple=True)
        source = torch.cat(sources, dim=1)[image, place]
        offsets = torch.cat(output.offsets, dim=1)[image, source].float()
        return Candidates(
            image,
            self.box_coder.decode(offsets, torch.cat(output.anchors)[source]),
            scores[image, place],
            torch.cat(labels, dim=1)[image, place],
            source,
        )


def retinanet_anchors(strides: Sequence[int], *, torchvision: bool = False) -> AnchorGenerator:
    """Nine anchors a position: three shapes, in three sizes within an octave (section 4).

    Args:
        strides: of the levels; a level's smallest anchor has the side 4 * stride (32 on P3).
        torchvision: sizes in whole pixels, and the rest of `AnchorGenerator`'s ``torchvision``.
    """
    sizes = [[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in strides]
    if torchvision:
        sizes = [[float(int(size)) for size in level] for level in sizes]
    return AnchorGenerator(sizes, (0.5, 1.0, 2.0), strides, torchvision=torchvision)


# ``torchvision=True`` takes the conventions of torchvision's checkpoints: its anchors, and as many
# detections. Weights converted by `instseg.models.foreign.torchvision_retinanet` then give its
# outputs.


def retinanet_resnet50_fpn(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> OneStageDetector:
    """RetinaNet with ResNet-50 and FPN; frozen batch norm, P6 from P5 as in torchvision."""
    return _resnet50_fpn(num_classes, freeze_at, torchvision)


def retinanet_resnet50_fpn_v2(
    num_classes: int, *, freeze_at: int = 2, torchvision: bool = False
) -> OneStageDetector:
    """As torchvision's second version: live batch norm, P6 from C5, group norm, GIoU.

    Group norm and GIoU are from Zhang et al. (2020, arXiv:1912.02424), table 1.
    """
    return _resnet50_fpn(num_classes, freeze_at, torchvision, v2=True)


def retinanet_resnet50_fpn_seg(num_classes: int, *, freeze_at: int = 2) -> OneStageDetector:
    """`retinanet_resnet50_fpn_v2` with prototype masks (Bolya et al., YOLACT, 2019)."""
    return _resnet50_fpn(num_classes, freeze_at, v2=True, num_prototypes=32)


def _resnet50_fpn(
    num_classes: int,
    freeze_at: int,
    torchvision: bool = False,
    *,
    v2: bool = False,
    num_prototypes: int = 0,
) -> OneStageDetector:
    backbone = ResNet(50, norm="live" if v2 else "frozen", freeze_at=freeze_at)
    neck = FPN(
        backbone.channels, backbone.strides, extra="conv_c5" if v2 else "conv_p5", min_stride=8
    )
    anchors = retinanet_anchors(neck.strides, torchvision=torchvision)
    norm: Norm | None = partial(nn.GroupNorm, 32) if v2 else None
    head = RetinaNetHead(
        anchors,
        RetinaNetConvs(
            neck.channels,
            anchors.num_anchors,
            num_classes,
            norm=norm,
            num_prototypes=num_prototypes,
        ),
        masks=PrototypeMasks(neck.channels, num_prototypes=num_prototypes)
        if num_prototypes
        else None,
        box_loss="giou" if v2 else "l1",
        max_detections=300 if torchvision else 100,
    )
    return OneStageDetector(Preprocess(), backbone, neck, head)
