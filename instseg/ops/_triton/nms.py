"""Greedy suppression: a matrix of bits of which box drops which, then one program that walks it.

Nothing returns to the CPU between the kernels.
"""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from instseg.ops._triton.bilinear import divide

# Boxes in a block of columns: the bits of a word.
_WORD = tl.constexpr(64)
# Boxes for whose rows of a column of words one program is there.
_BOXES = 128
# Words of a column that the walk reads together.
_ROWS = 4096


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The order of falling scores ``int64 [N]``, and ``bool [N]``: which in that order stay."""
    order = scores.sort(descending=True, stable=True).indices
    count = len(order)
    keep = torch.empty(count, dtype=torch.bool, device=boxes.device)
    if count == 0:
        return order, keep
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    boxes = boxes[order].contiguous()
    blocks = triton.cdiv(count, _WORD.value)
    words = torch.empty((blocks, count), dtype=torch.int64, device=boxes.device)
    # As a tensor the threshold has the dtype of the boxes; as a number it would be float32.
    threshold = boxes.new_full((1,), iou_threshold)
    with torch.cuda.device_of(boxes):  # type: ignore[no-untyped-call]
        _overlaps[(blocks, triton.cdiv(count, _BOXES))](
            words,
            boxes,
            None if groups is None else groups[order],
            threshold,
            count,
            BOXES=_BOXES,
            num_warps=4,
            # An IoU exactly at the threshold must not be rounded across it.
            enable_fp_fusion=False,
        )
        # Integers: Triton reads a bool as a bit, but bytes are what is stored.
        rows = min(_ROWS, triton.next_power_of_2(count))
        _walk[(1,)](
            keep.view(torch.int8),
            words,
            count,
            ROWS=rows,
            num_warps=8,
            # What one turn of the loop stores is loaded by the next: nothing may be fetched ahead.
            num_stages=1,
            enable_fp_fusion=True,
        )
    return order, keep


@triton.jit
def _either(a, b):
    return a | b


@triton.jit(do_not_specialize=["count"])
def _overlaps(words, boxes, groups, threshold, count, BOXES: tl.constexpr):
    """Bit b of ``words[block, i]``: box i, if it stays, drops the later box 64 * block + b."""
    start = tl.program_id(0) * _WORD
    i = tl.program_id(1) * BOXES + tl.arange(0, BOXES)
    if tl.program_id(1) * BOXES < start + _WORD:
        real = i < count
        left, top, right, bottom = _corners(boxes, i, real)
        area = (right - left) * (bottom - top)
        limit = tl.load(threshold)
        word = tl.zeros([BOXES], tl.int64)
        for b in range(_WORD):
            j = start + b
            left_j, top_j, right_j, bottom_j = _corners(boxes, j, j < count)
            width = tl.minimum(right, right_j) - tl.maximum(left, left_j)
            height = tl.minimum(bottom, bottom_j) - tl.maximum(top, top_j)
            inter = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
            # Two empty boxes: 0 / 0 is above nothing.
            iou = divide(inter, area + (right_j - left_j) * (bottom_j - top_j) - inter)
            over = (iou > limit) & (i < j) & (j < count)
            if groups is not None:
                group = tl.load(groups + i, mask=real, other=0)
                over &= group == tl.load(groups + j, mask=j < count, other=0)
            word |= over.to(tl.int64) << b
        row = words + tl.program_id(0).to(tl.int64) * count
        tl.store(row + i, word, mask=real)


@triton.jit
def _corners(boxes, i, mask):
    place = boxes + 4 * tl.cast(i, tl.int64)
    return (
        tl.load(place, mask=mask, other=0.0),
        tl.load(place + 1, mask=mask, other=0.0),
        tl.load(place + 2, mask=mask, other=0.0),
        tl.load(place + 3, mask=mask, other=0.0),
    )


@triton.jit(do_not_specialize=["count"])
def _walk(keep, words, count, ROWS: tl.constexpr):
    """Settles one block of boxes after the other."""
    bit = tl.arange(0, _WORD)
    for block in range(0, tl.cdiv(count, _WORD)):
        row = words + tl.cast(block, tl.int64) * count
        start = block * _WORD
        own = start + bit
        inside = tl.load(row + own, mask=own < count, other=0)
        # What the kept boxes of the blocks before drop.
        dropped = tl.zeros([ROWS], tl.int64)
        for first in range(0, start, ROWS):
            i = first + tl.arange(0, ROWS)
            # Both at once: loading only the words of kept boxes would wait for two loads in a row.
            kept = tl.load(keep + i, mask=i < start, other=0)
            word = tl.load(row + i, mask=i < start, other=0)
            dropped |= tl.where(kept != 0, word, 0)
        candidates = ~tl.reduce(dropped, 0, _either)
        # Inside the block: each round is right for one more box of any chain of suppressions.
        stay = candidates
        settled = False
        while not settled:
            active = ((stay >> bit) & 1) != 0
            after = candidates & ~tl.reduce(tl.where(active, inside, 0), 0, _either)
            settled = after == stay
            stay = after
        tl.store(keep + own, ((stay >> bit) & 1).to(tl.int8), mask=own < count)
        # The next block reads what other threads of this program wrote.
        tl.debug_barrier()
