"""Running out of a GPU's memory: one report that says what to lower, or a retry in halves."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence, Sized
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from instseg.engine.buffers import BufferSnapshot
from instseg.engine.errors import EngineError
from instseg.engine.plain_batch import PlainBatch
from instseg.engine.protocols import Batch

OnOutOfMemory = Literal["stop", "split"]

_MIB = 2**20
_SIGNS = (
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

_log = logging.getLogger(__name__)


class DeviceMemoryError(EngineError):
    """A forward or backward pass needs more memory than the device has; says what to lower."""


class Backward(Protocol):
    """Forward and backward of a batch whose loss counts ``share`` of its micro-batch's.

    It seeds the random generators itself, so that a repeated attempt draws the same numbers, and
    returns each loss's value, detached and without that factor.
    """

    def __call__(self, batch: Batch, share: float, /) -> dict[str, Tensor]:
        """Add the gradient to the parameters' ``grad``."""


def backward_in_parts(
    model: nn.Module, batch: Batch, run: Backward, *, policy: OnOutOfMemory
) -> dict[str, Tensor]:
    """Add the gradient of one micro-batch, in parts if it does not fit into memory whole.

    With "split" a batch that does not fit is cut into halves, these into halves, down to single
    images. A part counts by its images, so where losses are means over images the gradient is the
    whole batch's; batch norm and losses that are means over boxes see the parts by themselves.
    An attempt that failed leaves gradients and buffers as they were. To make that possible,
    gradients of micro-batches before are held aside, which takes their memory twice.

    Args:
        model: its parameters' ``grad`` gets the gradient; not wrapped in DDP with "split", whose
            reduction cannot be repeated.
        batch: at least one image.
        run: called with the whole batch and a share of 1, or with its parts.
        policy: "stop" makes one attempt.

    Returns:
        What ``run`` returned, of several parts the mean by images.

    Raises:
        DeviceMemoryError: the batch, or with "split" a single image, does not fit.
    """
    if policy == "stop":
        try:
            return run(batch, 1.0)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(_report(error, model, batch, policy)) from error
    return _split(model, batch, run, total=len(batch))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or cuDNN or cuBLAS under it, could not get a GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def _split(model: nn.Module, part: Batch, run: Backward, *, total: int) -> dict[str, Tensor]:
    losses = _attempt(model, part, run, len(part) / total)
    if losses is not None:
        return losses
    # The failed attempt's activations hung on its exception, which is gone by now.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(part) + 1) // 2
    _log.warning(
        "out of memory with %d images: trying %d and %d", len(part), middle, len(part) - middle
    )
    halves = [PlainBatch.part_of(part, 0, middle), PlainBatch.part_of(part, middle)]
    found = [_split(model, half, run, total=total) for half in halves]
    shares = [len(half) / len(part) for half in halves]
    return {
        name: shares[0] * value + shares[1] * found[1][name] for name, value in found[0].items()
    }


def _attempt(
    model: nn.Module, part: Batch, run: Backward, share: float
) -> dict[str, Tensor] | None:
    """The losses; or None, with gradients and buffers as before, if memory was too small."""
    buffers = BufferSnapshot(model)
    aside = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    losses = None
    try:
        losses = run(part, share)
    except RuntimeError as error:
        model.zero_grad(set_to_none=True)
        buffers.restore()
        if not is_out_of_memory(error):
            raise
        if len(part) == 1:
            raise DeviceMemoryError(_report(error, model, part, "split")) from error
    finally:
        for parameter, before in aside:
            parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)
    return losses


def _report(error: RuntimeError, model: nn.Module, batch: Batch, policy: OnOutOfMemory) -> str:
    shapes = [tuple(image.shape) for image in batch.images]
    height, width = max(s[1] for s in shapes), max(s[2] for s in shapes)
    objects = [str(len(t)) if isinstance(t, Sized) else "a map" for t in batch.targets]
    lines = [
        f"out of memory in the forward or backward pass of {_count(len(batch), 'image')}: "
        f"{str(error).splitlines()[0]}",
        f"images (C x H x W): {', '.join(_shape(shape) for shape in shapes)}",
        f"padded to one batch: at least {_shape((len(batch), shapes[0][0], height, width))}",
        f"objects in each image: {', '.join(objects)}",
        *_device_lines(next(model.parameters()).device),
        f"largest parts of the model: {_largest_parts(model)}",
        f"any of these helps: {'; '.join(_advice(len(batch), policy))}",
    ]
    return "\n  ".join(lines)


def _advice(images: int, policy: OnOutOfMemory) -> list[str]:
    advice = []
    if images > 1:
        advice.append("lower data.batch_size, and raise train.accumulate by the same factor")
    advice += [
        "lower the image sizes of data.train_transforms",
        "lower model.box_head.samples, if the model has it",
        "set train.amp=bf16, if it is not set",
    ]
    if images > 1 and policy == "stop":
        advice.append("set train.on_out_of_memory=split: such a batch is repeated in parts")
    return advice


def _device_lines(device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    free, total = torch.cuda.mem_get_info(device)
    figures = {
        "in all": total,
        "free": free,
        "in use by tensors": torch.cuda.memory_allocated(device),
        "reserved by torch": torch.cuda.memory_reserved(device),
        "at most in use so far": torch.cuda.max_memory_allocated(device),
    }
    parts = [f"{value / _MIB:,.0f} MiB {what}" for what, value in figures.items()]
    return [f"{torch.cuda.get_device_name(device)}: {', '.join(parts)}"]


def _largest_parts(model: nn.Module, count: int = 4) -> str:
    """The model's children by the bytes of their parameters."""
    sizes = {
        name: sum(p.numel() * p.element_size() for p in child.parameters())
        for name, child in model.named_children()
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:count]
    parts = [f"{name} {size / _MIB:,.1f} MiB" for name, size in largest if size]
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return f"{', '.join(parts)} (all {total / _MIB:,.1f} MiB; gradients as much again)"


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
