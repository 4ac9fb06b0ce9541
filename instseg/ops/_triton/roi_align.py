"""RoIAlign: one launch for all levels of a pyramid, forward and backward, after that of `locate`.

Forward, a program has some bins of a RoI and a block of channels. Backward, it has a few pixels of
a row and a block of channels, and adds up in order what each RoI that reaches them gives: every
output is written once, in its own dtype and layout, without atomics, zero fill or float32 copy.
"""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from instseg.ops._triton.bilinear import bins_near, locate, tap, visited, weight
from instseg.ops.layout import is_channels_last, memory_format

# Elements of a program's tile. With channels last a warp reads whole runs of channels; with
# channels first its lanes take neighbouring bins, whose pixels are near each other.
_BINS_LAST, _CHANNELS_LAST = 8, 256
_BINS_FIRST, _CHANNELS_FIRST = 64, 32
_PIXELS, _CHANNELS_BACKWARD = 8, 256
# RoIs whose reach a backward program looks at together.
_ROIS = 128


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
    batch, channels = first.shape[:2]
    count, bins = len(rois), size[0] * size[1]
    pooled = torch.empty(
        (count, channels, *size),
        dtype=first.dtype,
        device=first.device,
        memory_format=memory_format(is_channels_last(first)),
    )
    if pooled.numel() == 0:
        return pooled
    last = all(f.stride(1) == 1 for f in features)
    bins_block = _BINS_LAST if last else min(_BINS_FIRST, triton.next_power_of_2(bins))
    channels_block = _channels_block(channels, _CHANNELS_LAST if last else _CHANNELS_FIRST, rois)
    strides = [(f.stride(0), f.stride(2), f.stride(3), f.stride(1)) for f in features]
    # With channels last, steps that are multiples of 16 allow vector loads: see `_read`.
    unit = 16 if last and all(s % 16 == 0 for steps in strides for s in steps[:3]) else 1
    with torch.cuda.device_of(rois):  # type: ignore[no-untyped-call]
        table, places = locate(rois, levels, scales, size, sampling_ratio, aligned, batch)
        grid = (count * triton.cdiv(bins, bins_block), triton.cdiv(channels, channels_block))
        _forward[grid](
            pooled,
            tuple(features),
            tuple(
                _hidden(f.shape[2], f.shape[3], *(step // unit for step in steps[:3]), steps[3])
                for f, steps in zip(features, strides, strict=True)
            ),
            table,
            places,
            count,
            channels,
            pooled.stride(1),
            pooled.stride(3),
            LEVELS=len(features),
            HEIGHT=size[0],
            WIDTH=size[1],
            LAST=last,
            UNIT=unit,
            BINS=bins_block,
            CHANNELS=channels_block,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return pooled


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
    count, channels, height, width = grad.shape
    layout = memory_format(channels_last)
    grads = [
        torch.empty(
            (batch, channels, *s), dtype=grad.dtype, device=grad.device, memory_format=layout
        )
        for s in sizes
    ]
    tiles = sum(batch * h * triton.cdiv(w, _PIXELS) for h, w in sizes)
    if tiles == 0 or channels == 0:
        return grads
    channels_block = _channels_block(channels, _CHANNELS_BACKWARD, rois)
    with torch.cuda.device_of(rois):  # type: ignore[no-untyped-call]
        table, places = locate(
            rois, levels, scales, (height, width), sampling_ratio, aligned, batch
        )
        _backward[(tiles, triton.cdiv(channels, channels_block))](
            tuple(grads),
            tuple(_hidden(*s) for s in sizes),
            grad.permute(0, 2, 3, 1).contiguous(),
            table,
            places,
            count,
            batch,
            channels,
            LEVELS=len(sizes),
            HEIGHT=height,
            WIDTH=width,
            LAST=channels_last,
            PIXELS=_PIXELS,
            CHANNELS=channels_block,
            ROIS=_ROIS,
            # All that is done once for a program is done once in every warp of it.
            num_warps=1,
            enable_fp_fusion=True,
        )
    return grads


def _channels_block(channels: int, most: int, rois: Tensor) -> int:
    """A power of two; half as many of float64, which takes twice the registers."""
    most = most // 2 if rois.dtype == torch.float64 else most
    enough: int = triton.next_power_of_2(channels)
    return min(most, enough)


def _hidden(*numbers: int) -> tuple[int, ...]:
    """Numbers for `_pick`, in a form that is never 1 nor a multiple of 16.

    For those Triton compiles a kernel anew, and in tuples it cannot be told not to: each mix of map
    sizes would be another kernel.
    """
    return tuple(16 * number + 8 for number in numbers)


@triton.jit
def _pick(numbers, level, item: tl.constexpr, LEVELS: tl.constexpr):
    """A number from the tuple of a level, hidden by `_hidden`."""
    chosen = numbers[0][item]
    for i in tl.static_range(1, LEVELS):
        chosen = tl.where(level == i, numbers[i][item], chosen)
    return chosen // 16


@triton.jit
def _pick_map(maps, level, LEVELS: tl.constexpr):
    """The pointer of a level."""
    chosen = maps[0]
    for i in tl.static_range(1, LEVELS):
        chosen = tl.where(level == i, maps[i], chosen)
    return chosen


@triton.jit
def _read(base, y, x, y_step, x_step, mask, UNIT: tl.constexpr, DTYPE: tl.constexpr):
    """Pixels at rows and columns; the compiler sees that offsets are multiples of ``UNIT``."""
    offset = (y * y_step + x * x_step) * UNIT
    return tl.load(base + offset, mask=mask, other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=["count"])
def _forward(
    pooled,
    features,
    shapes,
    table,
    places,
    count,
    channels,
    channel_step,
    bin_step,
    LEVELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BINS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    dtype: tl.constexpr = table.dtype.element_ty
    blocks: tl.constexpr = (HEIGHT * WIDTH + BINS - 1) // BINS
    k = (tl.program_id(0) // blocks).to(tl.int64)
    level = tl.load(places + k)
    image = tl.load(places + count + k).to(tl.int64)
    height = _pick(shapes, level, 0, LEVELS)
    width = _pick(shapes, level, 1, LEVELS)
    y_step = _pick(shapes, level, 3, LEVELS)
    x_step = _pick(shapes, level, 4, LEVELS)
    base = _pick_map(features, level, LEVELS) + image * _pick(shapes, level, 2, LEVELS) * UNIT

    # The tile has bins and channels as its axes, in the order of the memory.
    axis: tl.constexpr = 1 if LAST else 0
    bin = tl.program_id(0) % blocks * BINS + tl.expand_dims(tl.arange(0, BINS), axis)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel = tl.expand_dims(channel, 1 - axis).to(tl.int64)
    base += channel if LAST else channel * _pick(shapes, level, 5, LEVELS)
    real = (bin < HEIGHT * WIDTH) & (channel < channels)

    row = table + 8 * k
    y_spacing, y_count = tl.load(row + 2), tl.load(row + 3)
    x_spacing, x_count = tl.load(row + 6), tl.load(row + 7)
    y_begin = tl.load(row) + (bin // WIDTH) * tl.load(row + 1)
    x_begin = tl.load(row + 4) + (bin % WIDTH) * tl.load(row + 5)
    y_samples, y_first = visited(y_begin, y_spacing, y_count, height)
    x_samples, x_first = visited(x_begin, x_spacing, x_count, width)
    total = tl.zeros([BINS, CHANNELS] if LAST else [CHANNELS, BINS], dtype)
    for p in range(y_samples):
        y_inside, top, bottom, lower = tap(y_begin, y_first + p, y_spacing, y_count, height)
        for q in range(x_samples):
            x_inside, left, right, upper = tap(x_begin, x_first + q, x_spacing, x_count, width)
            mask = real & y_inside & x_inside
            a = _read(base, top, left, y_step, x_step, mask, UNIT, dtype)
            b = _read(base, top, right, y_step, x_step, mask, UNIT, dtype)
            c = _read(base, bottom, left, y_step, x_step, mask, UNIT, dtype)
            d = _read(base, bottom, right, y_step, x_step, mask, UNIT, dtype)
            total += (1 - lower) * (1 - upper) * a + (1 - lower) * upper * b
            total += lower * (1 - upper) * c + lower * upper * d
    total /= tl.maximum(y_count * x_count, 1.0)

    place = k * channels * (HEIGHT * WIDTH) + channel * channel_step
    place += bin.to(tl.int64) * bin_step
    tl.store(pooled + place, total.to(pooled.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["count", "batch"])
def _backward(
    grads,
    sizes,
    grad,
    table,
    places,
    count,
    batch,
    channels,
    LEVELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROIS: tl.constexpr,
):
    dtype: tl.constexpr = table.dtype.element_ty
    tile = tl.program_id(0)
    level = 0
    first = 0
    passed = 0
    for i in tl.static_range(LEVELS):
        here = tile >= passed
        level = tl.where(here, i, level)
        first = tl.where(here, passed, first)
        passed += batch * (sizes[i][0] // 16) * tl.cdiv(sizes[i][1] // 16, PIXELS)
    height = _pick(sizes, level, 0, LEVELS)
    width = _pick(sizes, level, 1, LEVELS)
    runs = tl.cdiv(width, PIXELS)
    left = (tile - first) % runs * PIXELS
    y = (tile - first) // runs % height
    image = (tile - first) // runs // height

    x = left + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([PIXELS, CHANNELS], dtype)
    for start in range(0, count, ROIS):
        k = start + tl.arange(0, ROIS)
        touches = _touches(places, k, count, level, image, y, left, PIXELS)
        last = start - 1
        for _ in range(tl.sum(touches.to(tl.int32))):
            last = tl.min(tl.where(touches & (k > last), k, 2147483647))
            total = _add(
                total, grad, table, last, x, y, left, channel, channels, height, width,
                HEIGHT, WIDTH, PIXELS,
            )  # fmt: skip

    pixel = (image.to(tl.int64) * height + y) * width + x
    if LAST:
        place = pixel[:, None] * channels + channel[None, :]
    else:
        plane = (image.to(tl.int64) * channels + channel) * height + y
        place = plane[None, :] * width + x[:, None]
    mask = (x < width)[:, None] & (channel < channels)[None, :]
    into = _pick_map(grads, level, LEVELS)
    tl.store(into + place, total.to(into.dtype.element_ty), mask=mask)


@triton.jit
def _touches(places, k, count, level, image, y, left, PIXELS: tl.constexpr):
    """Which RoIs reach the pixels left..left + PIXELS - 1 of a row."""
    real = k < count
    place = places + k
    touches = real & (tl.load(place, mask=real, other=-1) == level)
    count = count.to(tl.int64)
    touches &= tl.load(place + count, mask=touches, other=-1) == image
    touches &= tl.load(place + 2 * count, mask=touches, other=0) <= y
    touches &= tl.load(place + 3 * count, mask=touches, other=-1) >= y
    touches &= tl.load(place + 4 * count, mask=touches, other=0) < left + PIXELS
    touches &= tl.load(place + 5 * count, mask=touches, other=-1) >= left
    return touches


@triton.jit
def _add(
    total,
    grad,
    table,
    k,
    x,
    y,
    left,
    channel,
    channels,
    height,
    width,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """``total [PIXELS, CHANNELS]`` plus what each bin of RoI k gives: weights times gradient."""
    dtype: tl.constexpr = table.dtype.element_ty
    k = k.to(tl.int64)
    row = table + 8 * k
    y_start, y_bin, y_spacing, y_count = (
        tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    )  # fmt: skip
    x_start, x_bin, x_spacing, x_count = (
        tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    )  # fmt: skip
    right = left + PIXELS - 1
    first_i, end_i = bins_near(y, y, y_start, y_bin, HEIGHT)
    first_j, end_j = bins_near(left, right, x_start, x_bin, WIDTH)
    for i in range(first_i, end_i):
        wy = weight(y.to(dtype), y, y, i, y_start, y_bin, y_spacing, y_count, height, HEIGHT)
        # Between two samples far apart there are rows that none touches.
        if wy > 0:
            wy /= y_count * x_count
            for j in range(first_j, end_j):
                wx = weight(
                    x.to(dtype), left, right, j, x_start, x_bin, x_spacing, x_count, width, WIDTH
                )
                g = grad + ((k * HEIGHT + i) * WIDTH + j) * channels + channel
                g = tl.load(g, mask=channel < channels, other=0.0).to(dtype)
                total += (wy * wx)[:, None] * g[None, :]
    return total
