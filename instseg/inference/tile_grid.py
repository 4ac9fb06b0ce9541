"""Where the windows of a tiled image lie, and which pixels each has a say in.

Source: Ronneberger et al., U-Net (2015), figure 2, "overlap-tile strategy".

Without tiles a network sees a canvas: the image, mirrored at its edges to a size that the network
takes. Windows are cut from that same canvas, so that the tiles' result can equal the untiled one:

- they begin at multiples of the network's step (the distance of one valid side to the next: the
  product of its strides), because pooling grids of windows at other places differ from those of
  the canvas;
- the first begins where the canvas does, the last ends where it does; so padded convolutions meet
  their padding at the canvas' edges alone, beyond what the overlap cuts away;
- a canvas no larger than a window is one window, and then nothing differs at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

Mode = Literal["exact", "blend"]


class Network(Protocol):
    """What of a semantic network decides where its windows lie."""

    border: int

    def valid_size(self, size: int) -> int:
        """The least side of at least ``size`` pixels that the network takes."""

    def output_size(self, size: int) -> int:
        """The side of the logits for a valid side."""

    def covering_size(self, size: int) -> int:
        """The least valid side whose logits cover ``size`` pixels."""


@dataclass(frozen=True, eq=False)
class Window:
    """One window along one axis of the image.

    Args:
        start: the first pixel that it reads, in image coordinates; mirrored where outside.
        lo: the first pixel of the image that it has a say in.
        hi: the one after the last.
        crop: place of pixel ``lo`` in the window's output.
        weights: ``float32 [hi - lo]``; those of all windows add up to 1 at each pixel.
    """

    start: int
    lo: int
    hi: int
    crop: int
    weights: Tensor


@dataclass(frozen=True)
class TileGrid:
    """Where the windows of an image lie: each row with each column.

    Args:
        rows: from top to bottom.
        columns: from left to right.
        sides: (height, width) of a window.
        size: (height, width) of the image.
    """

    rows: Sequence[Window]
    columns: Sequence[Window]
    sides: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, network: Network, size: tuple[int, int], tile: int, overlap: int, mode: Mode = "exact"
    ) -> TileGrid:
        """The grid for an image of ``size`` (height, width).

        Args:
            network: whose sizes and border count.
            size: of the image.
            tile: side of a window, at least; the next valid side is taken.
            overlap: by how many pixels outputs of neighbours overlap, at least.
            mode: "exact": each pixel is taken from the window in whose output it lies deepest, and
                half the overlap at least is cut away at every inner side. "blend": overlapping
                outputs are averaged by a raised cosine.

        Raises:
            ValueError: the tile is too small for the overlap, the overlap is negative, or the mode
                unknown.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if overlap < 0:
            raise ValueError(f"overlap must be at least 0 pixels, got {overlap}")
        axes = [_Axis.of(network, length, tile, overlap) for length in size]
        rows, columns = (axis.windows(mode) for axis in axes)
        return cls(rows, columns, (axes[0].side, axes[1].side), size)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


@dataclass(frozen=True)
class _Axis:
    """Windows of one side at ``starts``, counted from the canvas' edge, over ``length`` pixels."""

    length: int
    side: int
    output: int
    border: int
    overlap: int
    starts: Sequence[int]

    @classmethod
    def of(cls, network: Network, length: int, tile: int, overlap: int) -> _Axis:
        canvas = network.covering_size(length)
        side = min(network.covering_size(max(tile - 2 * network.border, 1)), canvas)
        output, last = network.output_size(side), canvas - side
        starts = [0]
        if last > 0:
            unit = network.valid_size(side + 1) - side
            step = (output - overlap) // unit * unit
            if step < 1:
                raise ValueError(
                    f"a tile of {tile} pixels is too small: of {side} pixels the network labels "
                    f"{output}, an overlap of {overlap} is asked for, and windows lie at "
                    f"multiples of {unit} pixels; take a greater tile or a smaller overlap"
                )
            starts = [*range(0, last, step), last]
        return cls(length, side, output, network.border, overlap, starts)

    def windows(self, mode: Mode) -> list[Window]:
        """Those of the windows that have a say in a pixel of the image."""
        spans = self._owned() if mode == "exact" else self._whole()
        parts = [
            (start, lo, min(hi, self.length))
            for start, (lo, hi) in zip(self.starts, spans, strict=True)
            if lo < self.length
        ]
        weights = [torch.ones(hi - lo, dtype=torch.float64) for _, lo, hi in parts]
        if mode == "blend":
            wave = torch.sin(math.pi * (torch.arange(self.output).double() + 0.5) / self.output)
            weights = [wave[: hi - lo] ** 2 for _, lo, hi in parts]
            total = torch.zeros(self.length, dtype=torch.float64)
            for weight, (_, lo, hi) in zip(weights, parts, strict=True):
                total[lo:hi] += weight
            weights = [w / total[lo:hi] for w, (_, lo, hi) in zip(weights, parts, strict=True)]
        return [
            Window(start - self.border, lo, hi, lo - start, weight.float())
            for weight, (start, lo, hi) in zip(weights, parts, strict=True)
        ]

    def _whole(self) -> list[tuple[int, int]]:
        return [(start, start + self.output) for start in self.starts]

    def _owned(self) -> list[tuple[int, int]]:
        """Parts that abut: the cuts lie amid the overlaps."""
        cuts = [(left + self.output + right) // 2 for left, right in pairwise(self.starts)]
        return list(pairwise([0, *cuts, self.starts[-1] + self.output]))
