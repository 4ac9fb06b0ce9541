"""Where the bilinear samples of RoIs fall, for kernels: a table of RoIs, and steps along one axis.

`locate` fills the table with one small kernel, so that every sum over samples, forward or backward,
sees the same positions. Of the samples of a huge RoI only those near the map are visited.
"""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of the table: start, bin, spacing of samples and samples in a bin, of y and then of x.
COLUMNS = 8
# Rows of the places: level (-1: nothing to sample), image, and the pixels that are within reach of
# a sample: first and last row, first and last column.
PLACES = 6
_BLOCK = 128


def locate(
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """The table ``[K, COLUMNS]`` in the dtype of the RoIs, and the places ``int32 [PLACES, K]``."""
    count = len(rois)
    table = rois.new_empty((count, COLUMNS))
    places = torch.empty((PLACES, count), dtype=torch.int32, device=rois.device)
    if count:
        _locate[(triton.cdiv(count, _BLOCK),)](
            table,
            places,
            rois.contiguous(),
            None if levels is None else levels.contiguous(),
            count,
            batch,
            SCALES=tuple(scales),
            LEVELS=len(scales),
            HEIGHT=size[0],
            WIDTH=size[1],
            SAMPLING=max(sampling_ratio, 0),
            ALIGNED=aligned,
            BLOCK=_BLOCK,
            # The number of adaptive samples is a rounded-up quotient: not a bit may differ.
            enable_fp_fusion=False,
        )
    return table, places


@triton.jit
def divide(a, b):
    """The quotient rounded to nearest, as PyTorch's; Triton's own is a few bits off in float32."""
    if a.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def slack(start, bin, BINS: tl.constexpr):
    """Pixels that the position of a sample may be off by rounding, generously."""
    return 0.01 + 1e-6 * (tl.abs(start) + BINS * tl.abs(bin))


@triton.jit(do_not_specialize=["count", "batch"])
def _locate(
    table,
    places,
    rois,
    levels,
    count,
    batch,
    SCALES: tl.constexpr,
    LEVELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = k < count
    image = tl.load(rois + 5 * k, mask=real, other=-1.0)
    left = tl.load(rois + 5 * k + 1, mask=real, other=0.0)
    top = tl.load(rois + 5 * k + 2, mask=real, other=0.0)
    right = tl.load(rois + 5 * k + 3, mask=real, other=0.0)
    bottom = tl.load(rois + 5 * k + 4, mask=real, other=0.0)
    if levels is None:
        level = tl.zeros([BLOCK], tl.int64)
    else:
        level = tl.load(levels + k, mask=real, other=-1)
    scale = tl.zeros([BLOCK], rois.dtype.element_ty)
    for i in tl.static_range(LEVELS):
        scale = tl.where(level == i, tl.full([BLOCK], SCALES[i], rois.dtype.element_ty), scale)

    y, y_bin, y_spacing, y_count = _axis(top * scale, bottom * scale, HEIGHT, SAMPLING, ALIGNED)
    x, x_bin, x_spacing, x_count = _axis(left * scale, right * scale, WIDTH, SAMPLING, ALIGNED)
    # Differences of finite borders can overflow; NaN and infinity fail both comparisons.
    good = (image >= 0) & (image < batch) & (level >= 0) & (level < LEVELS)
    good &= (tl.abs(y) < float("inf")) & (tl.abs(y_bin) < float("inf"))
    good &= (tl.abs(x) < float("inf")) & (tl.abs(x_bin) < float("inf"))
    good &= (y_count > 0) & (x_count > 0)

    row = table + 8 * k
    tl.store(row, y, mask=real)
    tl.store(row + 1, y_bin, mask=real)
    tl.store(row + 2, y_spacing, mask=real)
    tl.store(row + 3, tl.where(good, y_count, 0.0), mask=real)
    tl.store(row + 4, x, mask=real)
    tl.store(row + 5, x_bin, mask=real)
    tl.store(row + 6, x_spacing, mask=real)
    tl.store(row + 7, tl.where(good, x_count, 0.0), mask=real)

    first_row, last_row = _reach(y, y_bin, y_spacing, HEIGHT)
    first_column, last_column = _reach(x, x_bin, x_spacing, WIDTH)
    # The RoI borders themselves may be infinite where their difference is not looked at.
    place = places + k
    tl.store(place, tl.where(good, level, -1).to(tl.int32), mask=real)
    tl.store(place + count, tl.where(good, image, 0.0).to(tl.int32), mask=real)
    tl.store(place + 2 * count, tl.where(good, first_row, 0.0).to(tl.int32), mask=real)
    tl.store(place + 3 * count, tl.where(good, last_row, 0.0).to(tl.int32), mask=real)
    tl.store(place + 4 * count, tl.where(good, first_column, 0.0).to(tl.int32), mask=real)
    tl.store(place + 5 * count, tl.where(good, last_column, 0.0).to(tl.int32), mask=real)


@triton.jit
def _axis(low, high, BINS: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr):
    """Start, bin, spacing and count from RoI borders in feature pixels, before the shift."""
    if ALIGNED:
        low -= 0.5
        high -= 0.5
    length = high - low
    if not ALIGNED:
        length = tl.maximum(length, 1.0)
    bin = divide(length, tl.zeros_like(length) + BINS)
    if SAMPLING > 0:
        count = tl.zeros_like(bin) + SAMPLING
    else:
        count = tl.maximum(tl.ceil(bin), 0.0)
    return low, bin, divide(bin, tl.maximum(count, 1.0)), count


@triton.jit
def _reach(start, bin, spacing, BINS: tl.constexpr):
    """First and last pixel less than one pixel from a sample, as numbers that fit in int32."""
    a = start + 0.5 * spacing
    b = start + BINS * bin - 0.5 * spacing
    margin = 1.0 + slack(start, bin, BINS)
    first = tl.ceil(tl.minimum(a, b) - margin)
    last = tl.floor(tl.maximum(a, b) + margin)
    most = 1073741824.0
    first = tl.minimum(tl.maximum(first, -most), most)
    return first, tl.minimum(tl.maximum(last, -most), most)


@triton.jit
def visited(begin, spacing, count, size):
    """How many samples of each bin are visited, and the number of the first one.

    ``begin`` is where bins begin, one or several; those that begin with a skip can pass their last
    sample. There are as many as fit on a map of ``size`` pixels and one pixel around, and some to
    spare for rounding.
    """
    samples = count
    if spacing > 0:
        samples = tl.minimum(count, tl.floor((size + 2) / spacing) + 4)
    first = tl.zeros_like(begin)
    if (count > samples) & (spacing > 0):
        before = tl.floor(divide(-1 - begin, tl.zeros_like(begin) + spacing) - 0.5) - 1
        first = tl.maximum(before, 0.0)
    return samples.to(tl.int32), first


@triton.jit
def tap(begin, number, spacing, count, size):
    """Whether samples count, their lower and upper pixel, and the weight of the upper one."""
    position = begin + (number + 0.5) * spacing
    inside = (number < count) & (position >= -1) & (position <= size)
    position = tl.where(inside, position, 0.0)
    position = tl.minimum(tl.maximum(position, 0.0), size - 1)
    floor = tl.floor(position)
    low = floor.to(tl.int64)
    return inside, low, tl.minimum(low + 1, size - 1), position - floor


@triton.jit
def bins_near(low, high, start, bin, BINS: tl.constexpr):
    """The range of bins that can have a sample less than a pixel from the pixels low..high."""
    margin = 1.0 + slack(start, bin, BINS)
    first = tl.zeros_like(start)
    end = first + BINS
    if bin > 0:
        first = tl.floor((low - margin - start) / bin)
        end = tl.floor((high + margin - start) / bin) + 1
        first = tl.minimum(tl.maximum(first, 0.0), BINS)
        end = tl.minimum(tl.maximum(end, 0.0), BINS)
    return first.to(tl.int32), end.to(tl.int32)


@triton.jit
def weight(pixel, low, high, number, start, bin, spacing, count, size, BINS: tl.constexpr):
    """Sum of the weights with which the samples of one bin touch pixels, all in low..high."""
    begin = start + number * bin
    samples, skipped = visited(begin, spacing, count, size)
    first = tl.zeros_like(begin)
    end = tl.minimum(first + samples, count - skipped)
    if spacing > 0:
        margin = 1.0 + slack(start, bin, BINS)
        near = tl.floor((low - margin - begin) / spacing - 0.5) - skipped
        first = tl.minimum(tl.maximum(near, 0.0), end)
        near = tl.ceil((high + margin - begin) / spacing - 0.5) - skipped + 1
        end = tl.minimum(tl.maximum(near, 0.0), end)
    total = tl.zeros_like(pixel)
    for s in range(first.to(tl.int32), end.to(tl.int32)):
        position = begin + (skipped + s + 0.5) * spacing
        inside = (position >= -1) & (position <= size)
        position = tl.minimum(tl.maximum(position, 0.0), size - 1)
        total += tl.where(inside, tl.maximum(1 - tl.abs(pixel - position), 0.0), 0.0)
    return total
