"""Images in, instances in the images' own coordinates out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from instseg.structures import Instances


class Predictor:
    """A trained model and what is done to images before it.

    Args:
        model: ``model(images)`` returns one `Instances` for each image, in its coordinates.
        transforms: (image ``uint8 [3, H, W]``, instances) to the same after resizing.
        device: where the model runs.
    """

    def __init__(
        self,
        model: nn.Module,
        transforms: Callable[[Tensor, Instances], tuple[Tensor, Instances]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.transforms = transforms

    @torch.inference_mode()
    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Instances]:
        """Detections of each image ``uint8 [H, W, 3]`` (RGB), on the CPU, best first."""
        inputs = []
        for image in images:
            tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            size = (image.shape[0], image.shape[1])
            inputs.append(self.transforms(tensor, Instances.empty(size))[0].to(self.device))
        return [
            found.to("cpu").resized((image.shape[0], image.shape[1]))
            for found, image in zip(self.model(inputs), images, strict=True)
        ]
