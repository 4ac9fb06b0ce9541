"""Images in; objects, class maps or pictures in the images' own coordinates out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from instseg.inference.tile_grid import Mode, TileGrid
from instseg.inference.tiling import OnTile, Segmenter, TiledSegmenter
from instseg.structures import Instances, SemanticMap
from instseg.structures.image_target import ImageTarget

Prediction = Instances | SemanticMap | ImageTarget
"""What a model says of an image: its objects, the classes of its pixels, or another picture."""


class Predictor:
    """A trained model and what is done to images before it.

    Args:
        model: ``model(images)`` returns a `Prediction` for each image, in its coordinates.
        transforms: (image ``[C, H, W]``, instances) to the same after resizing.
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
    def __call__(self, images: Sequence[npt.NDArray[Any]]) -> list[Prediction]:
        """What the model says of each image, on the CPU; objects come best first.

        Args:
            images: uint8 or uint16 ``[H, W, C]``, of the channels that the model takes.
        """
        inputs = []
        for image in images:
            tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            size = (image.shape[0], image.shape[1])
            inputs.append(self.transforms(tensor, Instances.empty(size))[0].to(self.device))
        return [
            found.to("cpu").resized((image.shape[0], image.shape[1]))
            for found, image in zip(self.model(inputs), images, strict=True)
        ]


class SegmenterWithInstances(Segmenter, Protocol):
    """A semantic model that may make objects of its maps."""

    @property
    def instances(self) -> Callable[[SemanticMap], Instances] | None:
        """From the map of an image to the objects in it; None: maps are the result."""


class TiledModel(nn.Module):
    """A semantic model that sees large images window by window (see `TiledSegmenter`).

    Args:
        model: a semantic segmenter (`instseg.models.semantic.SemanticSegmenter`).
        tile: the side of the windows in pixels.
        mode: how windows are joined, see `TiledSegmenter`.
        keep_scores: give maps their probabilities, ``4 * C`` bytes a pixel, as resizing a map well
            needs them; maps that become objects always have them for that.
        on_tile: told of the progress within each image.

    Raises:
        ValueError: ``tile`` is less than 1, or too small for windows that overlap by a quarter.
    """

    def __init__(
        self,
        model: SegmenterWithInstances,
        tile: int,
        *,
        mode: Mode = "exact",
        keep_scores: bool = False,
        on_tile: OnTile | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._tiled = TiledSegmenter(model, tile, mode=mode)
        self._scores = torch.float32 if keep_scores or model.instances is not None else None
        self._on_tile = on_tile
        # An image of several windows would meet the error later, after hours perhaps.
        several = 4 * model.network.valid_size(tile)
        TileGrid.of(model.network, (several, several), tile, self._tiled.overlap)

    def forward(self, images: Sequence[Tensor]) -> list[SemanticMap] | list[Instances]:
        """One map for each image ``[C, H, W]``, or its objects, on the CPU."""
        maps = (
            self._tiled(image.cpu(), scores=self._scores, on_tile=self._on_tile) for image in images
        )
        find = self.model.instances
        return list(maps) if find is None else [find(semantic) for semantic in maps]
