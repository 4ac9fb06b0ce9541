"""Images of any size through a semantic network window by window, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.inference.tile_grid import Mode, Network, TileGrid, Window
from instseg.ops.mirror import mirrored_indices
from instseg.structures import ImageBatch, SemanticMap
from instseg.structures.semantic_map import Threshold

Image = npt.NDArray[Any]
OnTile = Callable[[int, int], None]
"""Told (tiles done, tiles in all) after each batch."""


class _RunnableNetwork(Network, Protocol):
    in_channels: int
    num_outputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to logits ``[B, K, h, w]``."""


class Segmenter(Protocol):
    """What tiling needs of a semantic model."""

    multi_label: bool
    threshold: Threshold

    @property
    def network(self) -> _RunnableNetwork:
        """From normalised images to logits."""

    @property
    def preprocess(self) -> Callable[[Sequence[Tensor]], ImageBatch]:
        """Normalises each pixel by itself."""

    def probabilities(self, batch: Tensor) -> Tensor:
        """From normalised images to the probabilities of the classes."""

    def to(self, device: torch.device) -> Any:
        """Move to a device, in place."""

    def eval(self) -> Any:
        """Leave the training mode, in place."""


class TiledSegmenter:
    """A semantic model for images of any size.

    Memory grows with the image by its labels alone, a byte a pixel (and by its scores if they are
    asked for), and by one band of scores as high as a tile.

    Args:
        model: a semantic segmenter (`instseg.models.semantic.SemanticSegmenter`); it is moved to
            the device and put into evaluation mode.
        tile: the side of the windows that the network sees, in pixels; where the network does not
            take it, the next that it does.
        overlap: by how many pixels the outputs of neighbouring windows overlap, at least. None: 0
            for networks that label the inside of a window alone (``border``), whose windows
            overlap as they are; a quarter of the tile for others.
        mode: "exact" takes each pixel from one window; "blend" averages windows where they
            overlap, by a raised cosine, which hides seams of networks whose overlap is less than
            what their outputs see. With "exact" an unpadded network gives what it gives for the
            whole image; so does a padded one if half the overlap is at least as far as a pixel of
            its output sees.
        batch_size: windows that the network sees at once.
        device: where the model runs.

    Raises:
        ValueError: the tile is too small for the overlap (when called), an argument is out of its
            range, or the image does not fit the model.
    """

    def __init__(
        self,
        model: Segmenter,
        tile: int = 512,
        *,
        overlap: int | None = None,
        mode: Mode = "exact",
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if tile < 1 or batch_size < 1:
            raise ValueError(
                f"tile and batch_size must be at least 1, got tile {tile}, batch_size {batch_size}"
            )
        self.device = torch.device(device)
        model.to(self.device)
        model.eval()
        self.model = model
        self.tile = tile
        self.overlap = overlap if overlap is not None else 0 if model.network.border else tile // 4
        self.mode = mode
        self.batch_size = batch_size

    def __call__(
        self,
        image: Image | Tensor,
        *,
        scores: torch.dtype | npt.NDArray[np.floating] | None = None,
        on_tile: OnTile | None = None,
    ) -> SemanticMap:
        """The classes of an image's pixels.

        Args:
            image: ``[C, H, W]``: uint8, uint16 or floating in 0..1; an array (a memmap too) or a
                CPU tensor.
            scores: None for labels alone; ``torch.float16`` or ``torch.float32`` to keep the
                probabilities too; or an array ``[K, H, W]`` of such a kind, a memmap perhaps, to
                write them into.
            on_tile: told of the progress.

        Returns:
            The map on the CPU; its scores share the memory of the array given.
        """
        pixels = image.numpy() if isinstance(image, Tensor) else image
        channels, outputs = self.model.network.in_channels, self.model.network.num_outputs
        if pixels.ndim != 3 or pixels.shape[0] != channels or 0 in pixels.shape:
            raise ValueError(f"image must be [{channels}, H, W], got {list(pixels.shape)}")
        size = (pixels.shape[1], pixels.shape[2])
        kept = _scores_to_fill(scores, (outputs, *size))
        labels = torch.zeros(
            (outputs, *size) if self.model.multi_label else size, dtype=torch.uint8
        )
        grid = TileGrid.of(self.model.network, size, self.tile, self.overlap, self.mode)
        bands = predict_bands(
            self._probabilities, pixels, grid, batch_size=self.batch_size, on_tile=on_tile
        )
        for first, band in bands:
            rows = slice(first, first + band.shape[1])
            labels[..., rows, :] = self._labels(band).cpu()
            if kept is not None:
                kept[:, rows] = band.cpu()
        return SemanticMap(labels, kept, threshold=self.model.threshold)

    @torch.inference_mode()
    def _probabilities(self, windows: Sequence[Tensor]) -> Tensor:
        return self.model.probabilities(self.model.preprocess(windows).tensor)

    def _labels(self, band: Tensor) -> Tensor:
        if self.model.multi_label:
            return SemanticMap.multi_label(band, self.model.threshold).labels
        return SemanticMap.exclusive(band, self.model.threshold).labels


def _scores_to_fill(
    scores: torch.dtype | npt.NDArray[np.floating] | None, shape: tuple[int, ...]
) -> Tensor | None:
    if scores is None:
        return None
    if isinstance(scores, torch.dtype):
        kept = torch.zeros(shape, dtype=scores)
    else:
        kept = torch.from_numpy(scores)
    if tuple(kept.shape) != shape or not kept.is_floating_point():
        raise ValueError(
            f"scores must be floating {list(shape)} for this image and network, "
            f"got {kept.dtype} {list(kept.shape)}"
        )
    return kept


def predict_bands(
    predict: Callable[[Sequence[Tensor]], Tensor],
    image: Image,
    grid: TileGrid,
    *,
    batch_size: int = 1,
    on_tile: OnTile | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run a network over all windows of an image and join what it says, band by band.

    Besides one batch, only a band as high as a window's output and as wide as the image is held.

    Args:
        predict: from B windows ``[C, h, w]`` of the image's dtype to ``float [B, K, h', w']``.
        image: ``[C, H, W]``; may be a memmap: only windows of it are read.
        grid: for the image's size.
        batch_size: B, at most; a batch lies in one row of windows.
        on_tile: told of the progress.

    Yields:
        The first row of a band and its values, ``float32 [K, rows, W]``, from top to bottom; the
        bands abut.
    """
    following = [row.lo for row in grid.rows[1:]] + [grid.size[0]]
    carried: Tensor | None = None
    for number, (row, end) in enumerate(zip(grid.rows, following, strict=True)):
        band: Tensor | None = None
        for first in range(0, len(grid.columns), batch_size):
            columns = grid.columns[first : first + batch_size]
            outputs = predict([_read(image, row, column, grid.sides) for column in columns])
            if band is None:
                shape = (outputs.shape[1], row.hi - row.lo, grid.size[1])
                band = torch.zeros(shape, device=outputs.device)
            for output, column in zip(outputs, columns, strict=True):
                _add(band, output, row, column)
            if on_tile is not None:
                on_tile(number * len(grid.columns) + first + len(columns), len(grid))
        assert band is not None
        if carried is not None:
            band[:, : carried.shape[1]] += carried
        carried = band[:, end - row.lo :].clone()
        yield row.lo, band[:, : end - row.lo]


def _add(band: Tensor, output: Tensor, row: Window, column: Window) -> None:
    part = output[
        :,
        row.crop : row.crop + row.hi - row.lo,
        column.crop : column.crop + column.hi - column.lo,
    ].float()
    across, down = column.weights.to(band.device), row.weights.to(band.device)
    band[:, :, column.lo : column.hi] += part * across * down[:, None]


def _read(image: Image, row: Window, column: Window, sides: tuple[int, int]) -> Tensor:
    """One window ``[C, *sides]``, a copy; only the part of the image that it shows is touched."""
    ys, xs = (
        mirrored_indices(window.start, side, length).numpy()
        for window, side, length in zip((row, column), sides, image.shape[1:], strict=True)
    )
    part = image[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    window = part[:, (ys - ys.min())[:, None], xs - xs.min()]
    # Torch knows no foreign byte order, which TIFF files may have.
    return torch.from_numpy(np.ascontiguousarray(window, window.dtype.newbyteorder("=")))
