"""What every detector is: preprocessing, backbone, neck, and one of two ways on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.backbones import Backbone
from instseg.models.preprocess import Preprocess
from instseg.models.targets import check_targets
from instseg.structures import ImageBatch, Instances


class Detector(nn.Module, ABC):
    """Losses with targets, detections without.

    Args:
        preprocess: normalises and pads the images.
        backbone: images to feature maps.
        neck: feature maps to those that the heads read.

    Attributes:
        class_layers: patterns (of `fnmatch`) of the parameters that belong to the classes, or to
            a task that not every model of the family has, such as masks.
    """

    class_layers: Sequence[str]

    def __init__(self, preprocess: Preprocess, backbone: Backbone, neck: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = neck

    @property
    def networks(self) -> list[nn.Module]:
        """The parts without control flow that depends on data: what compiles as one graph each."""
        return [self.backbone, self.neck]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        """Run the model.

        Args:
            images: ``[C, H, W]`` each, of any sizes: uint8, uint16, or floating in 0..1.
            targets: the objects of each image.

        Returns:
            With targets, scalar losses whose sum is to be trained. Without, the detections of each
            image in its own coordinates, best first.

        Raises:
            ValueError: images and targets differ in number, or an image's size is not that of
                its target.
        """
        if targets is not None:
            check_targets(images, targets)
        batch = self.preprocess(images)
        features = self.neck(self.backbone(batch.tensor))
        if targets is not None:
            return self.losses(batch, features, targets)
        return self.detect(batch, features)

    @abstractmethod
    def losses(
        self, batch: ImageBatch, features: list[Tensor], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """The losses of all parts."""

    @abstractmethod
    def detect(self, batch: ImageBatch, features: list[Tensor]) -> list[Instances]:
        """The detections of each image."""
