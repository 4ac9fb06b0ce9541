"""Torchvision's Mask R-CNN behind instseg's model contract, for side-by-side measurements.

Everything but the model is shared: loader, transforms, optimiser, schedule, evaluator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from instseg.config.build_model import build_model
from instseg.config.schema_model import MaskRcnnConfig
from instseg.models.backbones import Backbone
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, RoIMasks


class _NoResize(GeneralizedRCNNTransform):
    """Images come resized by the shared transforms; masks stay small until they are scored."""

    def resize(self, image, target=None):
        return image, target

    def postprocess(self, result, image_shapes, original_image_sizes):
        return result


class _FpnBackbone(nn.Module):
    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(x))))


class TorchvisionMaskRCNN(nn.Module):
    """Torchvision's `MaskRCNN`, with its own defaults, on the backbone of an instseg config."""

    def __init__(self, config: MaskRcnnConfig, num_classes: int) -> None:
        super().__init__()
        backbone = build_model(config, num_classes=num_classes).backbone
        self.model = MaskRCNN(
            _FpnBackbone(backbone, config.neck.channels),
            num_classes + 1,
            image_mean=config.image_mean,
            image_std=config.image_std,
            box_batch_size_per_image=config.box_head.samples,
        )
        self.model.transform = _NoResize(
            1, 1, config.image_mean, config.image_std, size_divisible=32
        )

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        device = next(self.parameters()).device
        scaled = [image.to(device) / 255 for image in images]
        if targets is not None:
            return self.model(scaled, [_to_dict(t, device) for t in targets])
        return [
            Instances(
                (image.shape[-2], image.shape[-1]),
                found["boxes"],
                found["labels"] - 1,
                scores=found["scores"],
                masks=RoIMasks(found["masks"][:, 0], aligned=False),
            )
            for image, found in zip(images, self.model(scaled), strict=True)
        ]


def _to_dict(target: Instances, device: torch.device) -> dict[str, Tensor]:
    pixels = [rle.decode(code) for code in instance_rles(target)]
    masks = np.stack(pixels) if pixels else np.zeros((0, *target.image_size), dtype=np.uint8)
    return {
        "boxes": target.boxes.to(device),
        "labels": target.labels.to(device) + 1,
        "masks": torch.from_numpy(masks).to(device),
    }
