"""YOLOX: an anchor-free YOLO (Ge et al., 2021, arXiv:2107.08430), with masks where wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.losses.yolox import yolox_l1_loss, yolox_losses
from instseg.models.backbones.csp_darknet import CSPDarknet
from instseg.models.detection.one_stage import Candidates, DenseHead, OneStageDetector, keep_best
from instseg.models.detection.prototype_masks import PrototypeMasks
from instseg.models.heads.yolox import YOLOXConvHead, YOLOXOutput
from instseg.models.matcher import IGNORED, POSITIVE
from instseg.models.necks.pafpn import PAFPN
from instseg.models.preprocess import Preprocess
from instseg.models.simota import Cells, SimOTA
from instseg.structures import ImageBatch, Instances

# exp() of a size is capped here, at 10,000 strides, so that no box is infinite.
_MAX_LOG_SIZE = math.log(1e4)


def make_cells(features: Sequence[Tensor], strides: Sequence[int]) -> Cells:
    """The cells of feature maps ``[..., H_l, W_l]``."""
    centers, sides = [], []
    for feature, stride in zip(features, strides, strict=True):
        height, width = feature.shape[-2:]
        y = (torch.arange(height, device=feature.device) + 0.5) * stride
        x = (torch.arange(width, device=feature.device) + 0.5) * stride
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        centers.append(torch.stack([columns, rows], dim=-1).flatten(0, 1))
        sides.append(torch.full((height * width,), float(stride), device=feature.device))
    return Cells(torch.cat(centers), torch.cat(sides))


def decode_boxes(offsets: Tensor, cells: Cells) -> Tensor:
    """Boxes ``float32 [..., A, 4]`` x1 y1 x2 y2 from offsets of that shape.

    Offsets are (x, y, w, h): the box's centre from the top left corner of its cell, in strides, and
    the logarithm of its size in strides (section 2.1, "Anchor-free").
    """
    offsets = offsets.float()
    stride = cells.strides[:, None]
    center = (offsets[..., :2] - 0.5) * stride + cells.centers
    half = offsets[..., 2:].clamp(max=_MAX_LOG_SIZE).exp() * stride / 2
    return torch.cat([center - half, center + half], dim=-1)


def encode_boxes(boxes: Tensor, cells: Cells) -> Tensor:
    """The offsets ``[A, 4]`` that `decode_boxes` turns into boxes ``[A, 4]``, each of its cell."""
    stride = cells.strides[:, None]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A box without area would have a size of minus infinity.
    size = (boxes[:, 2:] - boxes[:, :2]) / stride + 1e-8
    return torch.cat([(center - cells.centers) / stride + 0.5, size.log()], dim=1)


class YOLOXHead(DenseHead):
    """Boxes, classes and, where wanted, masks from every cell of the pyramid.

    Args:
        convs: its predictions.
        strides: of the feature maps, finest first.
        assigner: gives cells their objects.
        masks: makes prototypes from the finest map and masks from these and the coefficients of
            ``convs``, which must be as many.
        use_l1: add an L1 loss on the offsets, as for the last epochs of the published training.
        box_weight: weight of the box loss.
        score_threshold: detections with a lower score, objectness times class, are dropped.
        multi_label: a cell may give a detection of every class that passes the threshold, not of
            its best one alone.
        nms_threshold: IoU above which the worse of two detections of one class goes.
        max_detections: at most this many an image.

    Raises:
        ValueError: another number of coefficients than of prototypes.
    """

    class_layers = (
        "convs.levels.*.classes.*",
        "convs.levels.*.mask_branch.*",
        "convs.levels.*.coefficients.*",
        "masks.*",
    )

    def __init__(
        self,
        convs: YOLOXConvHead,
        strides: Sequence[int],
        *,
        assigner: SimOTA | None = None,
        masks: PrototypeMasks | None = None,
        use_l1: bool = False,
        box_weight: float = 5.0,
        score_threshold: float = 0.01,
        multi_label: bool = False,
        nms_threshold: float = 0.65,
        max_detections: int = 100,
    ) -> None:
        super().__init__(
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        prototypes = 0 if masks is None else masks.num_prototypes
        if convs.num_coefficients != prototypes:
            raise ValueError(
                f"convs.num_coefficients must be the number of prototypes, {prototypes}, "
                f"got {convs.num_coefficients}"
            )
        self.convs = convs
        self.strides = list(strides)
        self.assigner = assigner or SimOTA()
        self.masks = masks
        self.use_l1 = use_l1
        self.box_weight = box_weight
        self.multi_label = multi_label

    @property
    def network(self) -> nn.Module:
        """See `DenseHead.network`."""
        return self.convs

    def forward(self, features: Sequence[Tensor]) -> YOLOXOutput:
        """What the convolutions say of the cells of all levels."""
        output: YOLOXOutput = self.convs(features)
        return output

    def loss(
        self, batch: ImageBatch, features: Sequence[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """``loss_box_reg``, ``loss_objectness``, ``loss_classifier``; ``loss_l1``, ``loss_mask``.

        The last two where the head has them.
        """
        output = self(features)
        cells = make_cells(features, self.strides)
        boxes = decode_boxes(output.boxes, cells)
        kind, image, cell, objects = self._assign(output, boxes, cells, targets)
        gt_boxes = torch.cat([t.boxes for t in targets]).to(boxes)
        labels = torch.cat([t.labels for t in targets]).to(boxes.device)
        starts = torch.tensor([0, *(len(t) for t in targets)], device=boxes.device).cumsum(0)
        wanted = starts[image] + objects
        box, objectness, classifier = yolox_losses(
            output.objectness.flatten(),
            kind.flatten() != IGNORED,
            image * len(cells.strides) + cell,
            boxes[image, cell],
            gt_boxes[wanted],
            output.classes[image, cell],
            labels[wanted],
        )
        losses = {
            "loss_box_reg": self.box_weight * box,
            "loss_objectness": objectness,
            "loss_classifier": classifier,
        }
        if self.use_l1:
            own = Cells(cells.centers[cell], cells.strides[cell])
            losses["loss_l1"] = yolox_l1_loss(
                output.boxes[image, cell], encode_boxes(gt_boxes[wanted], own)
            )
        if self.masks is not None:
            losses["loss_mask"] = self.masks.loss(
                self.masks(features[0]),
                self.strides[0],
                output.coefficients[image, cell],
                image,
                objects,
                targets,
            )
        return losses

    def _assign(
        self, output: YOLOXOutput, boxes: Tensor, cells: Cells, targets: Sequence[Instances]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``kind`` ``[B, A]``, and of the positives ``[P]`` the image, the cell and the object."""
        kinds, matches = [], []
        for i, target in enumerate(targets):
            kind, matched = self.assigner(
                cells,
                boxes[i].detach(),
                output.objectness[i].detach().float(),
                output.classes[i].detach().float(),
                target,
            )
            kinds.append(kind)
            matches.append(matched)
        all_kinds = torch.stack(kinds)
        image, cell = (all_kinds == POSITIVE).nonzero().unbind(1)
        return all_kinds, image, cell, torch.stack(matches)[image, cell]

    def detect(self, batch: ImageBatch, features: Sequence[Tensor]) -> list[Instances]:
        """The detections of each image, best first, clipped to it."""
        output = self(features)
        scores = output.classes.float().sigmoid() * output.objectness.float().sigmoid()[..., None]
        if not self.multi_label:
            scores, best = scores.max(dim=2, keepdim=True)
        image, cell, label = (scores >= self.score_threshold).nonzero().unbind(1)
        cells = make_cells(features, self.strides)
        found = Candidates(
            image,
            decode_boxes(
                output.boxes[image, cell], Cells(cells.centers[cell], cells.strides[cell])
            ),
            scores[image, cell, label],
            label if self.multi_label else best[image, cell, label],
            cell,
        )
        detections, sources = keep_best(
            found,
            batch.sizes,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )
        if self.masks is None:
            return detections
        coefficients = [c[s] for c, s in zip(output.coefficients, sources, strict=True)]
        return self.masks.predict(
            self.masks(features[0]), self.strides[0], coefficients, detections
        )


@dataclass(frozen=True)
class YOLOXVariant:
    """What sets the six published networks apart (section 3, tables 3 and 4).

    Args:
        depth: multiplies the number of bottlenecks.
        width: multiplies the channels.
        input_size: side in pixels that images are letterboxed to.
        depthwise: depthwise separable 3x3 convolutions.
    """

    depth: float
    width: float
    input_size: int
    depthwise: bool = False


VARIANTS = {
    "yolox_nano": YOLOXVariant(0.33, 0.25, 416, depthwise=True),
    "yolox_tiny": YOLOXVariant(0.33, 0.375, 416),
    "yolox_s": YOLOXVariant(0.33, 0.5, 640),
    "yolox_m": YOLOXVariant(0.67, 0.75, 640),
    "yolox_l": YOLOXVariant(1.0, 1.0, 640),
    "yolox_x": YOLOXVariant(1.33, 1.25, 640),
}


def yolox(
    name: str,
    num_classes: int,
    *,
    input_size: int | None = None,
    masks: Mapping[str, int] | None = None,
    use_l1: bool = False,
    multi_label: bool = False,
) -> OneStageDetector:
    """A YOLOX of one of the `VARIANTS`.

    Args:
        name: of the variant.
        num_classes: number of classes.
        input_size: batches are padded to this side in pixels at least; None for the variant's.
        masks: give each detection a mask; the options of `PrototypeMasks`, whose channels are
            those of the head by default.
        use_l1: see `YOLOXHead`.
        multi_label: likewise.

    Raises:
        ValueError: an unknown name, or a size that is no multiple of 32.
    """
    if name not in VARIANTS:
        raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
    variant = VARIANTS[name]
    side = variant.input_size if input_size is None else input_size
    if side < 32 or side % 32:
        raise ValueError(f"input_size must be a multiple of the largest stride, 32, got {side}")
    depthwise = variant.depthwise
    backbone = CSPDarknet(variant.depth, variant.width, depthwise=depthwise)
    neck = PAFPN(backbone.channels, backbone.strides, depth=variant.depth, depthwise=depthwise)
    channels = int(256 * variant.width)
    prototypes = None
    if masks is not None:
        prototypes = PrototypeMasks(neck.channels[0], **{"channels": channels, **masks})
    convs = YOLOXConvHead(
        neck.channels,
        num_classes,
        channels=channels,
        depthwise=depthwise,
        num_coefficients=prototypes.num_prototypes if prototypes else 0,
    )
    head = YOLOXHead(convs, neck.strides, masks=prototypes, use_l1=use_l1, multi_label=multi_label)
    return OneStageDetector(yolox_preprocess(side), backbone, neck, head)


def yolox_preprocess(input_size: int) -> Preprocess:
    """Values 0..255, padded with grey at the right and bottom to ``input_size`` at least."""
    return Preprocess(
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        size_divisor=32,
        min_size=(input_size, input_size),
        fill=(114 / 255, 114 / 255, 114 / 255),
    )


def yolox_nano(num_classes: int, *, input_size: int = 416) -> OneStageDetector:
    """YOLOX-Nano: 0.91M parameters, depthwise separable convolutions."""
    return yolox("yolox_nano", num_classes, input_size=input_size)


def yolox_tiny(num_classes: int, *, input_size: int = 416) -> OneStageDetector:
    """YOLOX-Tiny: 5.06M parameters."""
    return yolox("yolox_tiny", num_classes, input_size=input_size)


def yolox_s(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-S: 9.0M parameters."""
    return yolox("yolox_s", num_classes, input_size=input_size)


def yolox_m(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-M: 25.3M parameters."""
    return yolox("yolox_m", num_classes, input_size=input_size)


def yolox_l(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-L: 54.2M parameters."""
    return yolox("yolox_l", num_classes, input_size=input_size)


def yolox_x(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-X: 99.1M parameters."""
    return yolox("yolox_x", num_classes, input_size=input_size)


def yolox_nano_seg(num_classes: int, *, input_size: int = 416) -> OneStageDetector:
    """YOLOX-Nano with prototype masks."""
    return yolox("yolox_nano", num_classes, input_size=input_size, masks={})


def yolox_tiny_seg(num_classes: int, *, input_size: int = 416) -> OneStageDetector:
    """YOLOX-Tiny with prototype masks."""
    return yolox("yolox_tiny", num_classes, input_size=input_size, masks={})


def yolox_s_seg(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-S with prototype masks."""
    return yolox("yolox_s", num_classes, input_size=input_size, masks={})


def yolox_m_seg(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-M with prototype masks."""
    return yolox("yolox_m", num_classes, input_size=input_size, masks={})


def yolox_l_seg(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-L with prototype masks."""
    return yolox("yolox_l", num_classes, input_size=input_size, masks={})


def yolox_x_seg(num_classes: int, *, input_size: int = 640) -> OneStageDetector:
    """YOLOX-X with prototype masks."""
    return yolox("yolox_x", num_classes, input_size=input_size, masks={})
