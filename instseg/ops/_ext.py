"""The compiled backend: hands tensors to ``torch.ops.instseg.ext_*`` in the layout these expect."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from instseg.ops._torch.focal_loss import sigmoid_focal_loss as torch_focal_loss
from instseg.ops._torch.focal_loss import sigmoid_focal_loss_backward as torch_focal_loss_backward
from instseg.ops._torch.nms import nms as torch_nms
from instseg.ops.build import CPU_LIBRARY, CUDA_LIBRARY, PACKAGE
from instseg.ops.layout import is_channels_last, memory_format
from instseg.structures.run_lengths import ResultColumns, RunLengths

_HOW = "build it with `python -m instseg.ops.build`"
# Loading is what registers the ops. It fails loudly: a library that is there must work.
_loaded = {"cpu": (PACKAGE / CPU_LIBRARY).is_file(), "cuda": False}
if _loaded["cpu"]:
    torch.ops.load_library(PACKAGE / CPU_LIBRARY)  # type: ignore[no-untyped-call]
    if torch.version.cuda is not None and (PACKAGE / CUDA_LIBRARY).is_file():
        torch.ops.load_library(PACKAGE / CUDA_LIBRARY)  # type: ignore[no-untyped-call]
        _loaded["cuda"] = True


def why_not(device: str) -> str | None:
    """Why there are no compiled kernels for tensors on a kind of device; None if there are."""
    if device not in _loaded:
        return f"there are no compiled kernels for {device}"
    return None if _loaded[device] else f"the {device} library is not built, {_HOW}"


def roi_align(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    scales: list[float],
    size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """See `instseg.ops._torch.roi_align`."""
    last = is_channels_last(features[0])
    layout = memory_format(last)
    pooled: Tensor = torch.ops.instseg.ext_roi_align(
        [f.contiguous(memory_format=layout) for f in features],
        rois.contiguous(),
        None if levels is None else levels.contiguous(),
        scales,
        *size,
        sampling_ratio,
        aligned,
        last,
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
    """See `instseg.ops._torch.roi_align_backward`."""
    last = grad.is_contiguous(memory_format=torch.channels_last)
    grads: list[Tensor] = torch.ops.instseg.ext_roi_align_backward(
        grad if last else grad.contiguous(),
        rois.contiguous(),
        None if levels is None else levels.contiguous(),
        scales,
        sampling_ratio,
        aligned,
        batch,
        [side for pair in sizes for side in pair],
        channels_last,
    )
    return grads


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """See `instseg.ops._torch.nms`."""
    if boxes.device.type == "cpu":
        if boxes.dtype == torch.float64 or scores.dtype == torch.float64:
            # The kernel sorts and compares in float32, which would merge what differs in float64.
            return torch_nms(boxes, scores, groups, iou_threshold)
        boxes, scores = boxes.float().contiguous(), scores.float().contiguous()
        groups = None if groups is None else groups.contiguous()
    order, keep = torch.ops.instseg.ext_nms(boxes, scores, groups, iou_threshold)
    return order, keep


def masks_to_rle(
    probs: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float, aligned: bool
) -> list[bytes]:
    """See `instseg.ops._torch.paste.masks_to_rle`."""
    text, offsets = torch.ops.instseg.ext_masks_to_rle(
        probs, boxes, *image_size, threshold, aligned
    )
    codes: bytes = text.numpy().tobytes()
    return [codes[begin:end] for begin, end in itertools.pairwise(offsets.tolist())]


def rle_areas(masks: RunLengths) -> npt.NDArray[np.int64]:
    """See `instseg.ops.rle.areas`."""
    pixels = torch.from_numpy(masks.size.prod(axis=1))
    result: Tensor = torch.ops.instseg.ext_rle_areas(*_strings(masks), pixels)
    return result.numpy()


def rle_pair_iou(
    first: RunLengths, second: RunLengths, *pairs: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """See `instseg.ops.rle.pair_iou`."""
    columns = (torch.from_numpy(np.ascontiguousarray(column)) for column in pairs)
    result: Tensor = torch.ops.instseg.ext_rle_pair_iou(
        *_strings(first), *_strings(second), *columns
    )
    return result.numpy()


def bootstrap_precision(
    *columns: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """See `instseg.ops.bootstrap`."""
    precision, hits = torch.ops.instseg.ext_bootstrap_precision(*map(torch.from_numpy, columns))
    return precision.numpy(), hits.numpy()


def precision_recall(
    *columns: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """See `instseg.ops.precision_recall`."""
    precision, recall = torch.ops.instseg.ext_precision_recall(*map(torch.from_numpy, columns))
    return precision.numpy(), recall.numpy()


def result_columns(text: npt.NDArray[np.uint8]) -> ResultColumns | None:
    """See `instseg.ops.result_columns`."""
    read, *columns = torch.ops.instseg.ext_result_columns(torch.from_numpy(text))
    if not read.item():
        return None
    image, category, score, box, size, letters, begin, end = (c.numpy() for c in columns)
    masks = RunLengths(letters, begin, end, size) if len(size) else None
    return ResultColumns(image, category, score, box if len(box) else None, masks)


def _strings(masks: RunLengths) -> tuple[Tensor, Tensor, Tensor]:
    columns = (np.ascontiguousarray(c) for c in (masks.text, masks.begin, masks.end))
    text, begin, end = map(torch.from_numpy, columns)
    return text, begin, end


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """See `instseg.ops._torch.focal_loss`."""
    x, t = logits, targets
    if logits.device.type == "cpu":
        if logits.dtype == torch.float64:
            return torch_focal_loss(logits, targets, alpha, gamma)
        x, t = _side_by_side(logits, targets)
    return _like(logits, torch.ops.instseg.ext_sigmoid_focal_loss(x, t, alpha, gamma))


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """See `instseg.ops._torch.focal_loss`."""
    g, x, t = grad, logits, targets
    if logits.device.type == "cpu":
        if logits.dtype == torch.float64:
            return torch_focal_loss_backward(grad, logits, targets, alpha, gamma)
        if grad.numel() > 0 and not any(grad.stride()):  # one number expanded, as sums give it
            g = grad.as_strided((1,), (1,)).float()
            x, t = _side_by_side(logits, targets)
        else:
            x, t, g = _side_by_side(logits, targets, grad)
    slope = torch.ops.instseg.ext_sigmoid_focal_loss_backward(g, x, t, alpha, gamma)
    return _like(logits, slope)


def _side_by_side(*tensors: Tensor) -> list[Tensor]:
    """In float32, with element i of all at the same place in memory."""
    floats = [t.float() for t in tensors]
    layout = memory_format(is_channels_last(tensors[0]))
    return [f.contiguous(memory_format=layout) for f in floats]


def _like(logits: Tensor, values: Tensor) -> Tensor:
    """The values in the dtype and memory layout of the logits."""
    result = torch.empty_like(logits)
    if values.dtype == result.dtype and values.stride() == result.stride():
        return values
    return result.copy_(values)


KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "bootstrap_precision": bootstrap_precision,
        "masks_to_rle": masks_to_rle,
        "nms": nms,
        "precision_recall": precision_recall,
        "result_columns": result_columns,
        "rle_areas": rle_areas,
        "rle_pair_iou": rle_pair_iou,
        "roi_align": roi_align,
        "roi_align_backward": roi_align_backward,
        "sigmoid_focal_loss": sigmoid_focal_loss,
        "sigmoid_focal_loss_backward": sigmoid_focal_loss_backward,
    }
)
