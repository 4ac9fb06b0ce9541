"""COCO run-length codes: one thin module over pycocotools, used by everything else.

Source: the COCO mask API (https://github.com/cocodataset/cocoapi, ``maskApi.c``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask

from instseg.ops import backend
from instseg.structures.geometry import MAX_PIXELS, Size
from instseg.structures.masks import RLE, Polygon
from instseg.structures.run_lengths import RunLengths

_CPU = torch.device("cpu")


def encode(mask: npt.NDArray[np.uint8 | np.bool_]) -> RLE:
    """Encode one mask ``[H, W]`` of zeros and ones."""
    code: RLE = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return code


def decode(rle: RLE) -> npt.NDArray[np.uint8]:
    """Decode to ``uint8 [H, W]`` of zeros and ones."""
    pixels: npt.NDArray[np.uint8] = coco_mask.decode(rle)
    return pixels


def decode_many(rles: Sequence[RLE], size: Size) -> npt.NDArray[np.uint8]:
    """Decode N masks of one size to ``uint8 [N, H, W]``."""
    if not rles:
        return np.zeros((0, *size), np.uint8)
    columns: npt.NDArray[np.uint8] = coco_mask.decode(list(rles)).T
    return columns.swapaxes(1, 2)


def from_polygons(polygons: Sequence[Polygon], size: Size) -> RLE:
    """The union of polygons ``[K, 2]`` on an image of ``size``, as COCO rasterises it."""
    flat = [np.asarray(p, dtype=np.float64).reshape(-1) for p in polygons]
    codes = coco_mask.frPyObjects([p.tolist() for p in flat], size[0], size[1])
    return merge(codes)


def from_many_polygons(polygons: Sequence[list[float]], size: Size) -> list[RLE]:
    """The mask of each polygon, ``[x1, y1, x2, y2, ...]``, on an image of ``size``."""
    codes: list[RLE] = coco_mask.frPyObjects(list(polygons), size[0], size[1]) if polygons else []
    return codes


def from_uncompressed(counts: Sequence[int], size: Size) -> RLE:
    """Compress COCO's list form of the counts."""
    code: RLE = coco_mask.frPyObjects(
        {"size": list(size), "counts": list(counts)}, size[0], size[1]
    )
    return code


def merge(rles: Sequence[RLE], *, intersect: bool = False) -> RLE:
    """Union of the masks, or their intersection."""
    if len(rles) > 1 and math.prod(rles[0]["size"]) > MAX_PIXELS:
        return _merge_runs(rles, least=len(rles) if intersect else 1)
    code: RLE = coco_mask.merge(list(rles), intersect=intersect)
    return code


def _merge_runs(rles: Sequence[RLE], least: int) -> RLE:
    """Where at least so many masks are. `pycocotools` takes four bytes for each pixel meanwhile."""
    size = (rles[0]["size"][0], rles[0]["size"][1])
    # Masks begin and end in turn, where a run ends.
    places = [np.cumsum(decode_counts(code["counts"])) for code in rles]
    steps = np.concatenate([1 - 2 * (np.arange(len(p)) % 2) for p in places])
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    order = order[place[order] < math.prod(size)]
    place = place[order]
    last = np.diff(place, append=-1) != 0  # of several steps at one place
    inside = np.cumsum(steps[order])[last] >= least
    edges = place[last][np.diff(inside, prepend=False)]
    return from_uncompressed(np.diff(edges, prepend=0, append=math.prod(size)).tolist(), size)


def area(rle: RLE) -> int:
    """Number of foreground pixels."""
    return int(coco_mask.area(rle))


def to_box(rle: RLE) -> tuple[float, float, float, float]:
    """The tight box (x1, y1, x2, y2); zeros for an empty mask."""
    x, y, w, h = (float(v) for v in coco_mask.toBbox(rle))
    return x, y, x + w, y + h


def areas(masks: RunLengths) -> npt.NDArray[np.int64]:
    """How many foreground pixels each mask has.

    Returns:
        ``int64 [N]``; -1 where the string is not well formed, or its runs do not add up to the
        pixels of its image.
    """
    result: npt.NDArray[np.int64] = backend.kernel("rle_areas", _CPU)(masks)
    return result


def pair_iou(
    first: RunLengths,
    second: RunLengths,
    first_index: npt.NDArray[np.int64],
    second_index: npt.NDArray[np.int64],
    crowd: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """``float64 [P]``: IoU of pairs of masks with sound run lengths.

    Args:
        first: N masks.
        second: M masks.
        first_index: ``int64 [P]`` into ``first``; pairs of one mask side by side are fastest.
        second_index: ``int64 [P]`` into ``second``.
        crowd: ``bool [P]``: where true, the intersection over the area of the first, as COCO has
            it for crowds.
    """
    if len(first_index) == 0:
        return np.zeros(0)
    kernel = backend.kernel("rle_pair_iou", _CPU)
    result: npt.NDArray[np.float64] = kernel(first, second, first_index, second_index, crowd)
    return result


def decode_counts(text: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths from COCO's compressed string, in which ``pycocotools`` trusts blindly.

    Each character holds five bits and a continuation bit, low bits first, the last one's highest
    bit being the sign; from the fourth value on, the difference to the value two before is stored.

    Raises:
        ValueError: a character outside the code, or a number cut short or over 35 bits.
    """
    try:
        data = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as error:
        raise ValueError("RLE counts hold a character that is not ASCII") from error
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        bad = int(np.flatnonzero((codes < 0) | (codes > 63))[0])
        raise ValueError(f"RLE counts hold {chr(data[bad])!r} at position {bad}")
    if codes[-1] & 32:
        raise ValueError("RLE counts are cut short")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("RLE counts hold a number over 35 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
