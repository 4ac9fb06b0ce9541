"""Every op in plain PyTorch: for any device and dtype, and what the other backends are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from instseg.ops._torch.bootstrap import bootstrap_precision
from instseg.ops._torch.focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_backward
from instseg.ops._torch.nms import nms
from instseg.ops._torch.paste import masks_to_rle
from instseg.ops._torch.precision_recall import precision_recall
from instseg.ops._torch.ps_roi import (
    ps_roi_align,
    ps_roi_align_backward,
    ps_roi_pool,
    ps_roi_pool_backward,
)
from instseg.ops._torch.result_columns import result_columns
from instseg.ops._torch.roi_align import roi_align, roi_align_backward
from instseg.ops._torch.roi_pool import roi_pool, roi_pool_backward
from instseg.ops._torch.run_lengths import rle_areas, rle_pair_iou

KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "bootstrap_precision": bootstrap_precision,
        "masks_to_rle": masks_to_rle,
        "nms": nms,
        "precision_recall": precision_recall,
        "ps_roi_align": ps_roi_align,
        "ps_roi_align_backward": ps_roi_align_backward,
        "ps_roi_pool": ps_roi_pool,
        "ps_roi_pool_backward": ps_roi_pool_backward,
        "result_columns": result_columns,
        "rle_areas": rle_areas,
        "rle_pair_iou": rle_pair_iou,
        "roi_align": roi_align,
        "roi_align_backward": roi_align_backward,
        "roi_pool": roi_pool,
        "roi_pool_backward": roi_pool_backward,
        "sigmoid_focal_loss": sigmoid_focal_loss,
        "sigmoid_focal_loss_backward": sigmoid_focal_loss_backward,
    }
)


def why_not(device: str) -> str | None:
    """None: plain PyTorch works on every kind of device."""
    return None
