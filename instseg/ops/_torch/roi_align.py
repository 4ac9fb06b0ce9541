"""RoIAlign as weighted sums of rows: ``embedding_bag`` over the pixels of channels-last maps.

Forward, a bag is a bin and its rows are feature pixels. Backward, the same pairs sorted by pixel
make bags of bins. No sum of products is ever stored, and sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops._torch.bilinear import Axis, taps
from instseg.ops.layout import is_channels_last, memory_format

# Pairs (pixel, bin) made at a time: about 16 bytes each.
_PAIRS = 1 << 22


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """See `instseg.ops.roi_align`; ``levels`` ``int64 [K]`` index ``features``, None is all 0."""
    first = features[0]
    channels = first.shape[1]
    pooled = rois.new_zeros((len(rois), size[0] * size[1], channels))
    for level, feature in enumerate(features):
        rows = feature.permute(0, 2, 3, 1).reshape(-1, channels).to(rois.dtype)
        shape = (feature.shape[0], feature.shape[2], feature.shape[3])
        for chosen, pixels, weights in _pairs(
            rois, levels, level, scales[level], shape, size, sampling_ratio, aligned
        ):
            sums = F.embedding_bag(pixels, rows, mode="sum", per_sample_weights=weights)
            pooled[chosen] = sums.view(len(chosen), -1, channels)
    pooled = pooled.view(len(rois), *size, channels).permute(0, 3, 1, 2).to(first.dtype)
    return pooled.contiguous(memory_format=memory_format(is_channels_last(first)))


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    batch: int,
    sizes: list[tuple[int, int]],
    channels_last: bool,
) -> list[Tensor]:
    """Gradients ``[batch, C, *sizes[l]]`` of the features, from that of the pooled maps."""
    channels, size = grad.shape[1], (grad.shape[2], grad.shape[3])
    rows = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(rois.dtype)
    bins = size[0] * size[1]
    grads = []
    for level, shape in enumerate(sizes):
        total = rois.new_zeros((batch * shape[0] * shape[1], channels))
        for chosen, pixels, weights in _pairs(
            rois, levels, level, scales[level], (batch, *shape), size, sampling_ratio, aligned
        ):
            number = chosen[:, None] * bins + torch.arange(bins, device=chosen.device)
            number = number.reshape(-1, 1).expand_as(pixels)
            pixel, order = pixels.flatten().sort(stable=True)
            touched, lengths = pixel.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
            total[touched] += F.embedding_bag(
                number.flatten()[order],
                rows,
                offsets=lengths.cumsum(0) - lengths,
                mode="sum",
                per_sample_weights=weights.flatten()[order],
            )
        total = total.view(batch, *shape, channels).permute(0, 3, 1, 2).to(grad.dtype)
        layout = memory_format(channels_last)
        grads.append(total.contiguous(memory_format=layout))
    return grads


def _pairs(
    rois: Tensor,
    levels: Tensor | None,
    level: int,
    scale: float,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pixels of a level and their weights in each bin of some RoIs at a time.

    Yields:
        the numbers ``[k]`` of the RoIs, and for their bins the pixels, ``int64 [k * bins, P]``
        numbers of rows of the map, with weights; together all RoIs of the level with samples.
    """
    batch, height, width = shape
    # RoIs that no check stopped (on a GPU) but that have no place: they stay 0.
    index = rois[:, 0]
    good = rois.isfinite().all(dim=1) & (index >= 0) & (index < batch)
    chosen = (good if levels is None else good & (levels == level)).nonzero()[:, 0]
    borders = rois[chosen, 1:] * scale
    y = Axis.of(borders[:, 1], borders[:, 3], size[0], sampling_ratio, aligned)
    x = Axis.of(borders[:, 0], borders[:, 2], size[1], sampling_ratio, aligned)
    if sampling_ratio <= 0:  # RoIs with alike numbers of samples side by side
        order = (y.count * x.count).argsort()
        chosen = chosen[order]
        y, x = y[order], x[order]
    for part in _chunks(y.slots(height).tolist(), x.slots(width).tolist(), size):
        y_part, x_part = y[part], x[part]
        rows, row_weights = taps(y_part, size[0], height)
        columns, column_weights = taps(x_part, size[1], width)
        image = rois[chosen[part], 0].long()[:, None, None] * height
        rows = (image + rows) * width
        pixels = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        count = len(pixels) * size[0] * size[1]
        if pixels.numel() == 0:  # adaptive samples of boxes without length: there are none
            continue
        yield chosen[part], pixels.view(count, -1), weights.view(count, -1)


def _chunks(y: list[float], x: list[float], size: tuple[int, int]) -> Iterator[slice]:
    """Runs of RoIs, of these samples in a bin, whose pairs are at most `_PAIRS` if several."""
    start, most_y, most_x = 0, 0.0, 0.0
    for k in range(len(y)):
        most_y, most_x = max(most_y, y[k]), max(most_x, x[k])
        if k > start and (k + 1 - start) * most_y * most_x * 4 * size[0] * size[1] > _PAIRS:
            yield slice(start, k)
            start, most_y, most_x = k, y[k], x[k]
    if start < len(y):
        yield slice(start, len(y))
