"""RoI pooling: the largest of the pixels in a bin, by ``embedding_bag`` over channels-last rows.

The pixels of a bin are the product of some rows and some columns of the map. So they are listed for
each axis (`Spans`), and only then combined, some bins at a time (`bags`); the position-sensitive
pooling ops (`instseg.ops._torch.ps_roi`) do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# RoIs whose spans are listed at a time, and pairs (pixel, bin) made at a time: about 100 bytes each
# while they are made. A single bin may have more, at most a few times the pixels of the map.
_ROIS = 128
_PAIRS = 1 << 20


class Spans(NamedTuple):
    """What k * bins rows (or columns) of bins take from one axis of the map.

    Args:
        pixel: ``int64 [E]``, for all of them one after another.
        weight: ``[E]``.
        first: ``int64 [k * bins]``, where the entries of each begin.
        length: ``int64 [k * bins]``, how many they are.
    """

    pixel: Tensor
    weight: Tensor
    first: Tensor
    length: Tensor

    @classmethod
    def of(cls, pixels: Tensor, weights: Tensor, keep: Tensor) -> Spans:
        """From slots ``[k, bins, P]``, of which some are kept."""
        length = keep.sum(dim=-1).flatten()
        return cls(pixels[keep], weights[keep], length.cumsum(0) - length, length)


class Bags(NamedTuple):
    """Some consecutive bins and their P pixels.

    Args:
        bins: ``int64 [n]``, numbers of the bins (RoI, row, column), consecutive.
        offsets: ``int64 [n]``, where the pixels of each begin.
        bin: ``int64 [P]``, number of the bin of each pixel.
        y: ``int64 [P]``, its row in the map.
        x: ``int64 [P]``, its column.
        weight: ``[P]``.
    """

    bins: Tensor
    offsets: Tensor
    bin: Tensor
    y: Tensor
    x: Tensor
    weight: Tensor


def bags(y: Spans, x: Spans, size: tuple[int, int]) -> Iterator[Bags]:
    """All bins of some RoIs with ``size`` bins each, row-major, `_PAIRS` pixels at a time."""
    high, wide = size
    number = torch.arange(len(y.length) * wide, device=y.length.device)
    y_row = number // wide
    x_row = number // (high * wide) * wide + number % wide
    count = y.length[y_row] * x.length[x_row]
    for part in _pieces(count):
        lengths = count[part]
        offsets = lengths.cumsum(0) - lengths
        bin = number[part].repeat_interleave(lengths)
        within = torch.arange(len(bin), device=bin.device) - offsets[bin - part.start]
        columns = x.length[x_row[bin]]
        i = y.first[y_row[bin]] + within // columns
        j = x.first[x_row[bin]] + within % columns
        yield Bags(number[part], offsets, bin, y.pixel[i], x.pixel[j], y.weight[i] * x.weight[j])


def _pieces(count: Tensor) -> Iterator[slice]:
    """Runs of bins that together have at most `_PAIRS` pixels, at least one bin each."""
    total = count.cumsum(0).cpu()
    start = done = 0
    while start < len(total):
        stop = max(int(torch.searchsorted(total, done + _PAIRS, right=True)), start + 1)
        yield slice(start, stop)
        start, done = stop, int(total[stop - 1])


def groups(rois: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`_ROIS` RoIs at a time, with the number of the first."""
    for start in range(0, len(rois), _ROIS):
        yield start, rois[start : start + _ROIS]


def placed(rois: Tensor, batch: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where RoIs lie: ``int64 [k]`` image, ``[k, 4]`` borders in feature pixels, ``bool [k]`` good.

    RoIs that no check stopped (on a GPU) but that have no place are not good: they take no pixels.
    """
    image = rois[:, 0]
    good = rois.isfinite().all(dim=1) & (image >= 0) & (image < batch)
    # Within the range of float32, so that no length is infinite.
    borders = (rois[:, 1:] * scale).clamp(-1e37, 1e37)
    return (
        torch.where(good, image, 0).long(),
        torch.where(good[:, None], borders, 0),
        good,
    )


def whole_ranges(
    low: Tensor, high: Tensor, bins: int, limit: int, good: Tensor, *, inclusive: bool
) -> Spans:
    """Bins of whole pixels along one axis; the weights are those of a mean.

    Args:
        low: ``[k]``, borders of RoIs in feature pixels.
        high: likewise.
        bins: bins of a RoI; neighbours share the pixel in which one ends and the next begins.
        limit: number of pixels, from the first of the map, that may be taken.
        good: ``bool [k]``; other RoIs take none.
        inclusive: whether the pixel at the upper border is part of the RoI.
    """
    start = _rounded(low)
    length = (_rounded(high) - start + int(inclusive)).clamp(min=1)
    # In the dtype of the RoIs, as torchvision: its rounding decides where a bin ends.
    size = (length.to(low.dtype) / bins)[:, None]
    step = torch.arange(bins, device=low.device, dtype=low.dtype)
    first = (start[:, None] + (step * size).floor().long()).clamp(0, limit)
    stop = (start[:, None] + ((step + 1) * size).ceil().long()).clamp(0, limit)
    count = torch.where(good[:, None], stop - first, 0)
    most = int(count.max()) if count.numel() else 0
    slot = torch.arange(most, device=low.device)
    pixels = first[..., None] + slot
    weights = count.to(low.dtype).reciprocal()[..., None].expand(pixels.shape)
    return Spans.of(pixels, weights, slot < count[..., None])


def _rounded(values: Tensor) -> Tensor:
    """``int64``: half away from zero, as C rounds; far beyond any map it is the same anyway."""
    values = values.clamp(-(2.0**40), 2.0**40)
    whole = values.trunc()
    return (whole + values.sign() * ((values - whole).abs() >= 0.5)).long()


def roi_pool(
    input: Tensor, rois: Tensor, spatial_scale: float, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """See `instseg.ops.roi_pool`; also the index of each maximum in its channel's plane, or -1."""
    batch, channels, height, width = input.shape
    rows = input.permute(0, 2, 3, 1).reshape(-1, channels).to(rois.dtype)
    bins, plane = size[0] * size[1], height * width
    pooled = rows.new_zeros((len(rois) * bins, channels))
    argmax = torch.full_like(pooled, -1, dtype=torch.int64)
    for start, group in groups(rois):
        image, borders, good = placed(group, batch, spatial_scale)
        x1, y1, x2, y2 = borders.unbind(1)
        y = whole_ranges(y1, y2, size[0], height, good, inclusive=True)
        x = whole_ranges(x1, x2, size[1], width, good, inclusive=True)
        for bag in bags(y, x, size):
            pixel = image[bag.bin // bins] * plane + bag.y * width + bag.x
            # 2 is "max"; of equal pixels the first is taken. Bins without pixels stay 0.
            most, _, lengths, index = torch.embedding_bag(rows, pixel, bag.offsets, False, 2)
            index = index - (image[bag.bins // bins] * plane)[:, None]
            pooled[start * bins + bag.bins] = most
            argmax[start * bins + bag.bins] = index.masked_fill(lengths[:, None] == 0, -1)
    pooled, argmax = (v.view(-1, *size, channels).permute(0, 3, 1, 2) for v in (pooled, argmax))
    return pooled.to(input.dtype), argmax


def roi_pool_backward(
    grad: Tensor, argmax: Tensor, rois: Tensor, batch: int, plane: tuple[int, int]
) -> Tensor:
    """Gradient ``[batch, C, *plane]`` of the input; equal inputs always give equal bits."""
    channels = grad.shape[1]
    image = torch.where(argmax >= 0, rois[:, 0, None, None, None], 0).long()
    index = (image * (plane[0] * plane[1]) + argmax).permute(0, 2, 3, 1) * channels
    index = index + torch.arange(channels, device=grad.device)
    taken = argmax.permute(0, 2, 3, 1) >= 0
    index, values = index[taken], grad.permute(0, 2, 3, 1)[taken].to(rois.dtype)
    total = values.new_zeros(batch * plane[0] * plane[1] * channels)
    # Each is the one of the two whose order of summation is fixed on that device.
    if grad.is_cuda:
        total.index_put_((index,), values, accumulate=True)
    else:
        total.scatter_add_(0, index, values)
    return total.view(batch, *plane, channels).permute(0, 3, 1, 2).to(grad.dtype)
