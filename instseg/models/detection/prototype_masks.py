"""Instance masks for one-stage detectors, from prototypes (Bolya et al., YOLACT, 2019).

A detection's mask is a sum of prototypes, which the whole image shares, weighted by coefficients
that the detector predicts for each box. What YOLACT does on the whole map and then crops to the
box is done here on a grid over the box: the prototypes are resampled to it first, which, the sum
being linear, gives the same logits. So no mask of the image's size exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from instseg.losses.prototype_masks import occurrence, prototype_mask_losses
from instseg.models.heads.prototypes import ProtoNet
from instseg.ops import mask_targets, roi_align
from instseg.structures import BitMasks, Instances, RoIMasks, SparseMasks


class PrototypeMasks(nn.Module):
    """Prototypes, their loss, and masks from them.

    Coefficients are given as the detector's last layer makes them; their tanh (section 3.1, "Mask
    Coefficients") is taken here.

    Args:
        in_channels: of the neck's finest map.
        num_prototypes: K.
        channels: width of the network that makes the prototypes.
        mask_size: M, side of the grid over a box, in training and in prediction.
        max_positives: at most this many positives of an image are trained. They are taken in turn:
            the first of each object in the order given, then the second of each, and so on.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_prototypes: int = 32,
        channels: int = 256,
        mask_size: int = 56,
        max_positives: int = 100,
    ) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        self.mask_size = mask_size
        self.max_positives = max_positives
        self.net = ProtoNet(in_channels, num_prototypes, channels=channels)

    def forward(self, feature: Tensor) -> Tensor:
        """The neck's finest map ``[B, in_channels, H, W]`` to prototypes ``[B, K, 2H, 2W]``."""
        prototypes: Tensor = self.net(feature)
        return prototypes

    def loss(
        self,
        prototypes: Tensor,
        stride: int,
        coefficients: Tensor,
        image: Tensor,
        objects: Tensor,
        targets: Sequence[Instances],
    ) -> Tensor:
        """Binary cross-entropy inside each positive's object's box, over the box's area.

        Args:
            prototypes: ``[B, K, 2H, 2W]``.
            stride: image pixels per pixel of the map ``[B, in_channels, H, W]``.
            coefficients: ``[P, K]`` of the positives of the batch, before their tanh.
            image: ``int64 [P]``, each one's image.
            objects: ``int64 [P]``, its object: an index into that image's target.
            targets: of B images.

        Returns:
            Scalar float32, the mean over the positives taken; 0, with gradients, where there are
            none.

        Raises:
            ValueError: a target has objects but no masks.
        """
        for target in targets:
            _training_masks(target)
        coefficients = coefficients.tanh()
        losses = []
        for index, target in enumerate(targets):
            chosen = (image == index).nonzero()[:, 0]
            chosen = chosen[self._in_turn(objects[chosen])]
            losses.append(
                self._image_losses(
                    prototypes[index : index + 1],
                    stride,
                    coefficients[chosen],
                    objects[chosen],
                    target,
                )
            )
        every = torch.cat(losses)
        return every.sum() / max(len(every), 1)

    def _in_turn(self, objects: Tensor) -> Tensor:
        return occurrence(objects).argsort(stable=True)[: self.max_positives]

    def _image_losses(
        self,
        prototypes: Tensor,
        stride: int,
        coefficients: Tensor,
        objects: Tensor,
        target: Instances,
    ) -> Tensor:
        unique, index = objects.unique(return_inverse=True)
        boxes = target.boxes.to(prototypes.device)[unique].float()
        wanted = boxes.new_zeros(0, self.mask_size, self.mask_size)
        if len(unique):
            wanted = mask_targets(_training_masks(target), unique, boxes, self.mask_size)
        pooled = self._pool(prototypes, stride, boxes)
        return prototype_mask_losses(pooled, coefficients, index, wanted)

    def _pool(self, prototypes: Tensor, stride: int, boxes: Tensor) -> Tensor:
        """Prototypes ``[1, K, 2H, 2W]`` over boxes ``[N, 4]``: ``[N, K, M, M]``."""
        return roi_align(prototypes, [boxes], self.mask_size, 2 / stride)

    def predict(
        self,
        prototypes: Tensor,
        stride: int,
        coefficients: Sequence[Tensor],
        detections: Sequence[Instances],
    ) -> list[Instances]:
        """The detections with their masks.

        Args:
            prototypes: ``[B, K, 2H, 2W]``.
            stride: as in `loss`.
            coefficients: of each image's N_b detections, ``[N_b, K]``, before their tanh.
            detections: of B images.
        """
        found = []
        # Image by image: pooled prototypes are K times as large as the masks.
        for index, (weights, detected) in enumerate(zip(coefficients, detections, strict=True)):
            pooled = self._pool(prototypes[index : index + 1], stride, detected.boxes)
            logits = torch.einsum("nk,nkhw->nhw", weights.tanh(), pooled)
            found.append(replace(detected, masks=RoIMasks(logits.float().sigmoid())))
        return found


def _training_masks(target: Instances) -> SparseMasks | BitMasks:
    """The target's masks; an image without objects needs none."""
    if target.masks is None and len(target) == 0:
        return SparseMasks([], target.image_size, target.image_size)
    if target.masks is None or isinstance(target.masks, RoIMasks):
        raise ValueError("prototype masks need targets with SparseMasks or BitMasks")
    return target.masks
