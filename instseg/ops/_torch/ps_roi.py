"""Position-sensitive pooling as weighted sums of rows: ``embedding_bag``, forward and backward.

The map is rearranged to rows (bin, image, y, x) of C / bins channels: those that a bin reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops._torch.bilinear import Axis, taps
from instseg.ops._torch.roi_pool import Spans, bags, groups, placed, whole_ranges

# Spans of rows and columns of bins, for borders of some RoIs and which of them have a place.
_Spanner = Callable[[Tensor, Tensor], tuple[Spans, Spans]]


def ps_roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, size: tuple[int, int], sampling_ratio: int
) -> Tensor:
    """See `instseg.ops.ps_roi_align`."""
    spanner = _bilinear(size, input.shape[2:], sampling_ratio)
    return _pool(input, rois, spatial_scale, size, spanner)


def ps_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    batch: int,
    plane: tuple[int, int],
) -> Tensor:
    """Gradient ``[batch, C * bins, *plane]`` of the input, from that of the pooled map."""
    spanner = _bilinear((grad.shape[2], grad.shape[3]), plane, sampling_ratio)
    return _unpool(grad, rois, spatial_scale, batch, plane, spanner)


def ps_roi_pool(input: Tensor, rois: Tensor, spatial_scale: float, size: tuple[int, int]) -> Tensor:
    """See `instseg.ops.ps_roi_pool`."""
    return _pool(input, rois, spatial_scale, size, _whole(size, input.shape[2:]))


def ps_roi_pool_backward(
    grad: Tensor, rois: Tensor, spatial_scale: float, batch: int, plane: tuple[int, int]
) -> Tensor:
    """Gradient ``[batch, C * bins, *plane]`` of the input, from that of the pooled map."""
    spanner = _whole((grad.shape[2], grad.shape[3]), plane)
    return _unpool(grad, rois, spatial_scale, batch, plane, spanner)


def _bilinear(size: tuple[int, int], plane: tuple[int, ...], sampling_ratio: int) -> _Spanner:
    """Bilinear samples, the borders being shifted by half a pixel."""

    def span(low: Tensor, high: Tensor, bins: int, pixels: int, good: Tensor) -> Spans:
        axis = Axis.of(low, high, bins, sampling_ratio, aligned=True)
        pixel, weight = taps(axis, bins, pixels)
        return Spans.of(pixel, weight, (weight != 0) & good[:, None, None])

    def spanner(borders: Tensor, good: Tensor) -> tuple[Spans, Spans]:
        x1, y1, x2, y2 = borders.unbind(1)
        return span(y1, y2, size[0], plane[0], good), span(x1, x2, size[1], plane[1], good)

    return spanner


def _whole(size: tuple[int, int], plane: tuple[int, ...]) -> _Spanner:
    """All pixels of a bin but, as in torchvision, those of the map's last row and column."""

    def spanner(borders: Tensor, good: Tensor) -> tuple[Spans, Spans]:
        x1, y1, x2, y2 = borders.unbind(1)
        return (
            whole_ranges(y1, y2, size[0], plane[0] - 1, good, inclusive=False),
            whole_ranges(x1, x2, size[1], plane[1] - 1, good, inclusive=False),
        )

    return spanner


def _pool(
    input: Tensor, rois: Tensor, spatial_scale: float, size: tuple[int, int], spanner: _Spanner
) -> Tensor:
    bins = size[0] * size[1]
    channels, plane = input.shape[1] // bins, (input.shape[2], input.shape[3])
    by_bin = input.reshape(-1, channels, bins, *plane).permute(2, 0, 3, 4, 1)
    rows = by_bin.reshape(-1, channels).to(rois.dtype)
    pooled = rows.new_zeros((len(rois) * bins, channels))
    for numbers, offsets, _, row, weight in _sums(
        rois, spatial_scale, size, len(input), plane, spanner
    ):
        pooled[numbers] = F.embedding_bag(row, rows, offsets, mode="sum", per_sample_weights=weight)
    return pooled.view(-1, *size, channels).permute(0, 3, 1, 2).to(input.dtype)


def _unpool(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    batch: int,
    plane: tuple[int, int],
    spanner: _Spanner,
) -> Tensor:
    channels, size = grad.shape[1], (grad.shape[2], grad.shape[3])
    bins = size[0] * size[1]
    rows = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(rois.dtype)
    total = rows.new_zeros((bins * batch * plane[0] * plane[1], channels))
    for _, _, number, row, weight in _sums(rois, spatial_scale, size, batch, plane, spanner):
        # The same pairs, sorted by pixel: sums in a fixed order.
        row, order = row.sort(stable=True)
        touched, lengths = torch.unique_consecutive(row, return_counts=True)
        total[touched] += F.embedding_bag(
            number[order],
            rows,
            lengths.cumsum(0) - lengths,
            mode="sum",
            per_sample_weights=weight[order],
        )
    by_bin = total.view(bins, batch, *plane, channels)
    return by_bin.permute(1, 4, 0, 2, 3).flatten(1, 2).to(grad.dtype)


def _sums(
    rois: Tensor,
    spatial_scale: float,
    size: tuple[int, int],
    batch: int,
    plane: tuple[int, int],
    spanner: _Spanner,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Some bins at a time, and the rows that each of them sums.

    Yields:
        ``int64 [n]``, numbers of the bins (RoI, row, column), and where the pairs of each begin;
        of P pairs the numbers of bin and row (bin of a RoI, image, y, x), ``int64``, and weight.
    """
    bins = size[0] * size[1]
    for start, group in groups(rois):
        image, borders, good = placed(group, batch, spatial_scale)
        for bag in bags(*spanner(borders, good), size):
            row = bag.bin % bins * batch + image[bag.bin // bins]
            row = (row * plane[0] + bag.y) * plane[1] + bag.x
            yield start * bins + bag.bins, bag.offsets, start * bins + bag.bin, row, bag.weight
