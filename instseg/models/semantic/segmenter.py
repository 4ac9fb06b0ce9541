"""A semantic network with all that lies between images and logits, and logits and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from instseg.models.preprocess import Preprocess
from instseg.models.semantic.network import SegmentationNetwork
from instseg.models.targets import check_targets
from instseg.ops.mirror import mirrored_indices
from instseg.structures import IGNORE, Instances, SemanticMap
from instseg.structures.geometry import Size
from instseg.structures.semantic_map import Threshold

Loss = Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]
"""From logits ``[B, C, H, W]``, labels ``[B, H, W]`` or ``[B, C, H, W]`` and the pixels' weights
``[B, H, W]`` or None to scalar losses by name."""

_SYMMETRIES: tuple[tuple[bool, tuple[int, ...]], ...] = tuple(
    (transposed, flips) for transposed in (False, True) for flips in ((), (-1,), (-2,), (-2, -1))
)
"""Whether rows and columns change places after what is flipped."""

PostProcessor = Callable[[SemanticMap], Instances]
"""From the map of an image to the objects in it."""


class SemanticSegmenter(nn.Module):
    """Losses with targets, class maps or objects without.

    Images of any size are mirrored at their borders to a size that the network takes (Ronneberger
    et al., U-Net, 2015, figure 2), and what it says of the mirrored part is cut away.

    Args:
        preprocess: normalises the images; their sides are left to the network.
        network: images to logits.
        loss: of the logits.
        multi_label: classes may overlap (sigmoid); otherwise one excludes the others (softmax).
        threshold: see `SemanticMap.multi_label` and `SemanticMap.exclusive`.
        symmetries: predictions are the mean over so many views of an image: 1 is the image alone,
            2 also mirrored left and right, 4 top and bottom too, 8 all turns and mirror images
            (the U-Net of the paper's table 1 averages over 7 turns).
        instances: makes objects of the maps that are predicted; None returns the maps.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        network: SegmentationNetwork,
        loss: Loss,
        *,
        multi_label: bool = False,
        threshold: Threshold = 0.5,
        symmetries: Literal[1, 2, 4, 8] = 1,
        instances: PostProcessor | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.loss = loss
        self.multi_label = multi_label
        self.threshold = threshold
        self.symmetries = symmetries
        self.instances = instances
        self.class_layers = [f"network.{pattern}" for pattern in network.class_layers]

    @property
    def networks(self) -> list[nn.Module]:
        """The part without control flow that depends on data: what compiles as one graph."""
        return [self.network]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[SemanticMap] | None = None
    ) -> dict[str, Tensor] | list[SemanticMap] | list[Instances]:
        """Run the model.

        Args:
            images: ``[C, H, W]`` each, of any sizes: uint8, uint16, or floating in 0..1.
            targets: the classes of each image's pixels.

        Returns:
            With targets, scalar losses whose sum is to be trained. Without, for each image its
            class map, or its objects where ``instances`` makes them, in its own coordinates.

        Raises:
            ValueError: images and targets differ in number or size, or the targets are not of the
                network's classes.
        """
        if targets is not None:
            check_targets(images, targets)
            self._check_maps(targets)
        if targets is None:
            batch, sizes = self._batch(images)
            maps = self._maps(self.probabilities(batch), sizes)
            return maps if self.instances is None else [self.instances(m) for m in maps]
        logits, _ = self.logits(images)
        labels, weights = _stacked(targets, (logits.shape[-2], logits.shape[-1]))
        return self.loss(
            logits,
            labels.to(logits.device, non_blocking=True),
            None if weights is None else weights.to(logits.device, non_blocking=True),
        )

    def logits(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Logits ``float32 [B, C, H, W]`` that cover the largest image, and the images' sizes.

        Image b has its own at ``[b, :, :h, :w]``; the rest belongs to mirrored pixels.
        """
        batch, sizes = self._batch(images)
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        logits: Tensor = self.network(batch)
        return logits[..., :height, :width].float(), sizes

    def probabilities(self, batch: Tensor) -> Tensor:
        """The classes' probabilities, the mean over `symmetries`.

        Args:
            batch: ``float [B, C, H, W]``, normalised, of sides that the network takes.

        Returns:
            ``float32 [B, K, h, w]``, as many pixels as the network has logits for.
        """
        total = self._probabilities(batch)
        for transposed, flips in _SYMMETRIES[1 : self.symmetries]:
            seen = batch.flip(flips)
            scores = self._probabilities(seen.mT if transposed else seen)
            total = total + (scores.mT if transposed else scores).flip(flips)
        return total if self.symmetries == 1 else total / self.symmetries

    def _probabilities(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.network(batch).float()
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
        """Images on mirrored canvases of one valid size, at (border, border), and their sizes."""
        if not images:
            raise ValueError("a model needs at least one image")
        normal = [self.preprocess([image]).tensor for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        cover, border = self.network.covering_size, self.network.border
        whole = (cover(max(h for h, _ in sizes)), cover(max(w for _, w in sizes)))
        return torch.cat([mirrored(image, (border, border), whole) for image in normal]), sizes

    def _maps(self, scores: Tensor, sizes: Sequence[Size]) -> list[SemanticMap]:
        own = [score[:, :h, :w] for score, (h, w) in zip(scores, sizes, strict=True)]
        if self.multi_label:
            return [SemanticMap.multi_label(score, self.threshold) for score in own]
        return [SemanticMap.exclusive(score, self.threshold) for score in own]

    def _check_maps(self, targets: Sequence[SemanticMap]) -> None:
        outputs = self.network.num_outputs
        for i, target in enumerate(targets):
            if not isinstance(target, SemanticMap):
                raise ValueError(
                    f"target {i} is {type(target).__name__}: a semantic network learns from "
                    "SemanticMap (instseg.data.semantic_targets makes them of Instances)"
                )
            maps = target.labels.shape[0] if target.is_multi_label else None
            if maps != (outputs if self.multi_label else None):
                wanted = f"[{outputs}, H, W]" if self.multi_label else "[H, W]"
                raise ValueError(
                    f"labels of target {i} must be {wanted} for this network, "
                    f"got {list(target.labels.shape)}"
                )


def mirrored(images: Tensor, corner: Size, size: Size) -> Tensor:
    """Lay images on a larger canvas whose rest shows their mirror image.

    Args:
        images: ``[..., H, W]``.
        corner: (top, left) of the images on the canvas.
        size: (height, width) of the canvas.

    Returns:
        ``[..., *size]``. The border pixel itself is not doubled (numpy's "reflect"); the mirror
        image is mirrored again where it is too small.
    """
    for axis, (start, wanted) in enumerate(zip(corner, size, strict=True), start=-2):
        have = images.shape[axis]
        if (start, wanted) != (0, have):
            shown = mirrored_indices(-start, wanted, have)
            images = images.index_select(axis, shown.to(images.device))
    return images


def _stacked(targets: Sequence[SemanticMap], size: Size) -> tuple[Tensor, Tensor | None]:
    """Labels and weights of all images, each padded with `IGNORE` and 0 to ``size``."""
    shape = (len(targets), *targets[0].labels.shape[:-2], *size)
    labels = targets[0].labels.new_full(shape, IGNORE)
    for padded, target in zip(labels, targets, strict=True):
        h, w = target.image_size
        padded[..., :h, :w] = target.labels
    if all(target.weights is None for target in targets):
        return labels, None
    weights = torch.zeros(len(targets), *size, device=labels.device)
    for padded, target in zip(weights, targets, strict=True):
        h, w = target.image_size
        padded[:h, :w] = 1.0 if target.weights is None else target.weights
    return labels, weights
