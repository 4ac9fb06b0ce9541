"""Ground-truth masks to what consumers need: run-length codes, or M x M training targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops import check, rle
from instseg.ops._torch.bilinear import Axis, taps
from instseg.ops.paste import masks_to_rle
from instseg.ops.roi_align import roi_align
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.instances import Instances
from instseg.structures.masks import RLE, BitMasks, Polygon, RoIMasks, Segmentation, SparseMasks

# Numbers held at a time while targets are made from run lengths.
_CHUNK = 1 << 20
# No box reaches further, so that its sides are finite too.
_FAR = 1e30
# Polygons are rasterised this much finer than the target, then averaged to covered fractions.
_OVERSAMPLE = 2


def instance_rles(instances: Instances) -> list[RLE]:
    """One run-length code for each instance, at ``instances.image_size``.

    Raises:
        ValueError: the instances have no masks.
    """
    masks, size = instances.masks, instances.image_size
    if masks is None:
        raise ValueError("these instances have no masks")
    if isinstance(masks, BitMasks):
        return [rle.encode(m) for m in masks.tensor.cpu().numpy()]
    if isinstance(masks, RoIMasks):
        return masks_to_rle(masks.probs, instances.boxes, size, aligned=masks.aligned)
    return [_to_rle(s, masks.source_size, masks.transform, size) for s in masks.segmentations]


def _to_rle(segmentation: Segmentation, source: Size, transform: AxisTransform, size: Size) -> RLE:
    if not isinstance(segmentation, dict):
        scale = np.array([transform.scale_x, transform.scale_y])
        shift = np.array([transform.shift_x, transform.shift_y])
        return rle.from_polygons([p * scale + shift for p in segmentation], size)
    if transform == AxisTransform() and source == size:
        return segmentation
    pixels = rle.decode(segmentation)
    inverse = transform.inverse()
    # The nearest source pixel of each pixel centre; -1 where the centre falls outside.
    rows = _source_indices(size[0], inverse.scale_y, inverse.shift_y, source[0])
    columns = _source_indices(size[1], inverse.scale_x, inverse.shift_x, source[1])
    moved = pixels[rows[:, None], columns[None, :]]
    moved[rows < 0] = 0
    moved[:, columns < 0] = 0
    return rle.encode(moved)


def _source_indices(length: int, scale: float, shift: float, limit: int) -> npt.NDArray[np.int64]:
    index: npt.NDArray[np.int64]
    index = np.floor((np.arange(length) + 0.5) * scale + shift).astype(np.int64)
    index[(index < 0) | (index >= limit)] = -1
    return index


def mask_targets(
    masks: SparseMasks | BitMasks,
    indices: Tensor,
    boxes: Tensor,
    size: int,
    *,
    aligned: bool = True,
) -> Tensor:
    """Training targets: for each box, the mask of one instance resampled to ``size x size``.

    A target is the covered fraction of each cell (Mask R-CNN, section 3: "the intersection between
    an RoI and its associated ground-truth mask"). Pixels are averaged by RoIAlign, for run lengths
    without decoding them; polygons are rasterised inside the box alone. So no image-size mask is
    made.

    Args:
        masks: masks of N instances.
        indices: ``int64 [K]``, the instance of each box.
        boxes: ``float [K, 4]`` in present image coordinates.
        size: M.
        aligned: RoIAlign's convention for pixel masks.

    Returns:
        ``float32 [K, M, M]`` in [0, 1] on the device of ``boxes``.

    Raises:
        TypeError: ``masks`` are predictions (`RoIMasks`) or None, or boxes are not floating.
        ValueError: a wrong shape, boxes that are not finite, ``size`` below 1, an index that no
            instance has, or broken run lengths.
    """
    _check(masks, indices, boxes, size)
    if isinstance(masks, BitMasks):
        rois = torch.cat([indices[:, None].to(boxes), boxes], dim=1)
        pixels = masks.tensor[:, None].to(boxes)
        return roi_align(pixels, rois, (size, size), aligned=aligned)[:, 0]
    source_boxes = masks.transform.inverse().apply_boxes(boxes.detach().float().cpu())
    source_boxes = source_boxes.clamp(-_FAR, _FAR)
    targets = torch.zeros(len(boxes), size, size)
    for index in sorted(set(indices.tolist())):
        chosen = (indices.cpu() == index).nonzero()[:, 0]
        segmentation = masks.segmentations[index]
        if isinstance(segmentation, dict):
            targets[chosen] = _pixel_targets(segmentation, source_boxes[chosen], size, aligned)
        else:
            targets[chosen] = _polygon_targets(segmentation, source_boxes[chosen], size)
    mirrored = [
        axis
        for axis, scale in ((1, masks.transform.scale_y), (2, masks.transform.scale_x))
        if scale < 0
    ]
    return targets.flip(mirrored).to(boxes.device)


def _check(masks: object, indices: Tensor, boxes: Tensor, size: int) -> None:
    if not isinstance(masks, SparseMasks | BitMasks):
        raise TypeError(
            f"mask targets need SparseMasks or BitMasks in the targets, got {type(masks).__name__}"
        )
    check.boxes("boxes", boxes)
    check.finite("boxes", boxes)
    check.output_size("size", size)
    if indices.shape != boxes.shape[:1]:
        raise ValueError(f"indices must be [{boxes.shape[0]}], got {list(indices.shape)}")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    if check.looks_inside(indices) and ((indices < 0) | (indices >= len(masks))).any():
        raise ValueError(f"indices must be in 0..{len(masks) - 1}, got {indices.tolist()}")


def _pixel_targets(code: RLE, boxes: Tensor, size: int, aligned: bool) -> Tensor:
    """RoIAlign of the decoded mask, from its run lengths.

    The weights of a pixel's row and column are independent. So a bin's value is the sum, over the
    pieces of runs in single columns, of the weight of the column times those of the rows.
    """
    runs = _foreground_runs(code)
    step = max(_CHUNK // (size * sum(code["size"])), 1)
    targets = [
        _box_targets(runs, code["size"], boxes[i : i + step], size, aligned)
        for i in range(0, len(boxes), step)
    ]
    return torch.cat(targets)


def _box_targets(
    runs: npt.NDArray[np.int64], image_size: Size, boxes: Tensor, size: int, aligned: bool
) -> Tensor:
    """``[k, size, size]`` for few boxes, from runs ``[R, 2]`` of pixels in column order."""
    top, down = _bin_weights(boxes[:, 1], boxes[:, 3], size, image_size[0], aligned)
    left, across = _bin_weights(boxes[:, 0], boxes[:, 2], size, image_size[1], aligned)
    # above[..., y]: the weights of all rows above y.
    above = F.pad(down.cumsum(dim=2), (1, 0))
    targets = above.new_zeros(len(boxes), size, size)
    step = max(_CHUNK // (size * len(boxes)), 1)
    for columns, begins, ends in _column_pieces(runs, image_size[0], left, across.shape[2], step):
        rows = (torch.from_numpy((v - top).clip(0, down.shape[2])) for v in (begins, ends))
        begin, end = (above[:, :, r] for r in rows)
        targets += (end - begin) @ across[:, :, torch.from_numpy(columns - left)].mT
    return targets.float()


def _bin_weights(
    low: Tensor, high: Tensor, bins: int, extent: int, aligned: bool
) -> tuple[int, Tensor]:
    """RoIAlign's weights along one axis: the first pixel touched, and ``float64 [k, bins, P]``."""
    axis = Axis.of(low, high, bins, 0, aligned)
    pixels, weights = taps(axis, bins, extent)
    if pixels.numel() == 0:
        return 0, weights.new_zeros((len(low), bins, 0), dtype=torch.float64)
    first = int(pixels.min())
    dense = weights.new_zeros((len(low), bins, int(pixels.max()) + 1 - first), dtype=torch.float64)
    return first, dense.scatter_add_(2, pixels - first, weights.double())


def _foreground_runs(code: RLE) -> npt.NDArray[np.int64]:
    """``[R, 2]``: where each run of foreground begins and ends, in pixels down the columns."""
    counts = rle.decode_counts(code["counts"])
    height, width = code["size"]
    ends = counts.cumsum()
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"RLE counts do not fill an image of {code['size']}")
    return np.stack([ends[:-1:2], ends[1::2]], axis=1)


def _column_pieces(
    runs: npt.NDArray[np.int64], height: int, left: int, width: int, step: int
) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Cut runs into single columns: column, first row and row after the last, `step` at a time.

    Only columns ``left`` to ``left + width`` are kept.
    """
    runs = runs.clip(left * height, (left + width) * height)
    runs = runs[runs[:, 0] < runs[:, 1]]
    first = runs[:, 0] // height
    pieces = (runs[:, 1] - 1) // height - first + 1
    ends = pieces.cumsum()
    for start in range(0, int(pieces.sum()), step):
        number = np.arange(start, min(start + step, ends[-1]))
        run = np.searchsorted(ends, number, side="right")
        column = first[run] + number - (ends - pieces)[run]
        begin, end = (runs[run].T - column * height).clip(0, height)
        yield column, begin, end


def _polygon_targets(polygons: list[Polygon], boxes: Tensor, size: int) -> Tensor:
    """The boxes' targets at once: each polygon is rasterised in all of them by one call."""
    fine = size * _OVERSAMPLE
    corners = boxes.double().numpy()
    has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    low, high = corners[has_area, None, :2], corners[has_area, None, 2:]
    scale = fine / (high - low)
    pixels = torch.zeros(len(low), fine, fine, dtype=torch.uint8)
    for polygon in polygons:
        local = ((polygon - low) * scale).reshape(len(low), polygon.size)
        codes = rle.from_many_polygons(local.tolist(), (fine, fine))
        pixels |= torch.from_numpy(rle.decode_many(codes, (fine, fine)))
    targets = torch.zeros(len(boxes), size, size)
    targets[torch.from_numpy(has_area)] = F.avg_pool2d(pixels[:, None].float(), _OVERSAMPLE)[:, 0]
    return targets
