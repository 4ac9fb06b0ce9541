"""Kernels that Triton compiles at their first call: a GPU is all that they need, no compiler."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl

from instseg.ops._triton import bilinear
from instseg.ops._triton.focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_backward
from instseg.ops._triton.nms import nms
from instseg.ops._triton.roi_align import roi_align, roi_align_backward

KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "nms": nms,
        "roi_align": roi_align,
        "roi_align_backward": roi_align_backward,
        "sigmoid_focal_loss": sigmoid_focal_loss,
        "sigmoid_focal_loss_backward": sigmoid_focal_loss_backward,
    }
)

# Triton decides when a kernel is defined: its own at its import, ours at the import above.
_INTERPRETED = not any(isinstance(f, triton.JITFunction) for f in (tl.sum, bilinear.divide))


def why_not(device: str) -> str | None:
    """Why tensors on a kind of device have no Triton kernels here; None if they have."""
    if device == "cpu":
        if _INTERPRETED:
            return None
        return (
            "Triton compiles for GPUs only; to run its kernels on a CPU, slowly and for tests, set "
            "TRITON_INTERPRET=1 before anything imports triton (torchvision does)"
        )
    if device == "cuda":
        if torch.cuda.is_available():
            return None
        return "torch.cuda.is_available() is False: check the driver and that torch has CUDA"
    return "the kernels are made for CUDA devices"
