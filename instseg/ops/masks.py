"""Ground-truth masks to what consumers need: run-length codes, or M x M training targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops import rle
from instseg.ops.paste import masks_to_rle
from instseg.ops.roi_align import roi_align
from instseg.structures.geometry import AxisTransform, Size
from instseg.structures.instances import Instances
from instseg.structures.masks import RLE, BitMasks, Polygon, RoIMasks, Segmentation, SparseMasks

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
    an RoI and its associated ground-truth mask"). Pixels are averaged by RoIAlign; polygons are
    rasterised inside the box alone, so that no image-size mask is made.

    Args:
        masks: masks of N instances.
        indices: ``int64 [K]``, the instance of each box.
        boxes: ``float [K, 4]`` in present image coordinates.
        size: M.
        aligned: RoIAlign's convention for pixel masks.

    Returns:
        ``float32 [K, M, M]`` in [0, 1] on the device of ``boxes``.

    Raises:
        TypeError: ``masks`` are predictions (`RoIMasks`) or None.
    """
    if isinstance(masks, BitMasks):
        rois = torch.cat([indices[:, None].to(boxes), boxes], dim=1)
        pixels = masks.tensor[:, None].to(boxes)
        return roi_align(pixels, rois, (size, size), aligned=aligned)[:, 0]
    if not isinstance(masks, SparseMasks):
        raise TypeError(
            f"mask targets need SparseMasks or BitMasks in the targets, got {type(masks).__name__}"
        )
    source_boxes = masks.transform.inverse().apply_boxes(boxes.detach().float().cpu())
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


def _pixel_targets(code: RLE, boxes: Tensor, size: int, aligned: bool) -> Tensor:
    pixels = torch.from_numpy(rle.decode(code))
    # Only the window that the boxes touch is turned into floats.
    height, width = pixels.shape
    left, top = (int(boxes[:, i].min().floor().clamp(min=0)) for i in (0, 1))
    right = min(int(boxes[:, 2].max().ceil()) + 2, width)
    bottom = min(int(boxes[:, 3].max().ceil()) + 2, height)
    left, top = max(left - 1, 0), max(top - 1, 0)
    if right <= left or bottom <= top:
        return torch.zeros(len(boxes), size, size)
    window = pixels[top:bottom, left:right].float()[None, None]
    local = boxes - boxes.new_tensor([left, top, left, top])
    return roi_align(window, [local], (size, size), aligned=aligned)[:, 0]


def _polygon_targets(polygons: list[Polygon], boxes: Tensor, size: int) -> Tensor:
    fine = size * _OVERSAMPLE
    targets = np.zeros((len(boxes), fine, fine), dtype=np.float32)
    for target, (x1, y1, x2, y2) in zip(targets, boxes.double().tolist(), strict=True):
        if x2 > x1 and y2 > y1:
            scale = np.array([fine / (x2 - x1), fine / (y2 - y1)])
            local = [(p - (x1, y1)) * scale for p in polygons]
            target[:] = rle.decode(rle.from_polygons(local, (fine, fine)))
    return F.avg_pool2d(torch.from_numpy(targets), _OVERSAMPLE)
