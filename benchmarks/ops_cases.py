"""What `benchmarks.ops` measures: each op of instseg beside torchvision's, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.ops as tv
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from instseg import ops

SIZE = (800, 1344)
STRIDES = (4, 8, 16, 32)


@dataclass
class Case:
    """One line of the table.

    Args:
        name: what is measured.
        ours: the call of instseg.
        peer: torchvision's.
        wanted: the ratio aimed at on a CPU, and on a GPU (None: no aim).
        traffic: least bytes to and from memory.
        flops: least arithmetic.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    wanted: tuple[float | None, float | None]
    traffic: float
    flops: float = 0.0


def random_boxes(n: int, seed: int, low: float = 16.0, high: float = 512.0) -> Tensor:
    """Sides even in the logarithm between ``low`` and ``high`` px, inside an image of `SIZE`."""
    generator = torch.Generator().manual_seed(seed)
    side = low * (high / low) ** torch.rand(n, 2, generator=generator)
    room = (torch.tensor([SIZE[1], SIZE[0]]) - side).clamp(min=0)
    corner = torch.rand(n, 2, generator=generator) * room
    return torch.cat([corner, corner + side], dim=1)


def roi_align_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """1000 boxes x 256 channels x 7 x 7 bins from 2 x 256 x 200 x 336."""
    nchw = torch.randn(2, 256, 200, 336, device=device, dtype=dtype)
    nhwc = nchw.to(memory_format=torch.channels_last)
    boxes = random_boxes(1000, 0)
    rois = torch.cat([(torch.arange(1000) % 2)[:, None].float(), boxes], dim=1).to(device)
    peer_rois = rois.to(dtype)
    pooled = 1000 * 256 * 49
    traffic = (nchw.numel() + pooled) * dtype.itemsize
    flops = pooled * 16 * 2  # 2 x 2 samples of 4 pixels

    def sides(x: Tensor, sampling: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        return (
            lambda: ops.roi_align(x, rois, 7, 0.25, sampling, True),
            lambda: tv.roi_align(x, peer_rois, 7, 0.25, sampling, True),
        )

    def backwards(x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
        return _backward(x, sides, 2)

    yield Case("roi_align, channels_last", *sides(nhwc, 2), (12, 2), traffic, flops)
    yield Case("roi_align, NCHW", *sides(nchw, 2), (6, 2), traffic, flops)
    yield Case("roi_align, channels_last, adaptive", *sides(nhwc, 0), (10, None), traffic, flops)
    yield Case("roi_align backward, channels_last", *backwards(nhwc), (8, 3), traffic, flops)
    yield Case("roi_align backward, NCHW", *backwards(nchw), (8, 3), traffic, flops)


def _backward(
    x: Tensor, sides: Callable[..., tuple[Callable[[], Tensor], ...]], *arguments: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The backward alone, of a gradient that lies as the op's own output does."""
    x = x.detach().requires_grad_()

    def call(forward: Callable[[], Tensor]) -> Callable[[], object]:
        pooled = forward()
        grad = torch.randn_like(pooled)
        return lambda: torch.autograd.grad(pooled, x, grad, retain_graph=True)

    ours, peer = (call(side) for side in sides(x, *arguments))
    return ours, peer


def multiscale_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """2 x 512 boxes from four levels of 256 channels."""
    boxes = [random_boxes(512, seed).to(device) for seed in (0, 1)]
    peer_boxes = [b.to(dtype) for b in boxes]
    pooler = tv.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    shapes = [(2, 256, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    layouts = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
    for name, layout in layouts.items():
        maps = [
            torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
            for shape in shapes
        ]
        named = {str(i): f for i, f in enumerate(maps)}
        pooled = 1024 * 256 * 49
        yield Case(
            f"multiscale_roi_align, {name}",
            lambda maps=maps: ops.multiscale_roi_align(maps, boxes, 7, STRIDES, 2, False),
            lambda named=named: pooler(named, peer_boxes, [SIZE] * 2),
            (10, 3),
            (sum(f.numel() for f in maps) + pooled) * dtype.itemsize,
            pooled * 16 * 2,
        )


def nms_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Boxes all over the image, and 50 boxes around each object as an RPN gives them."""
    for count, wanted in ((1000, (3, None)), (5000, (10, 2)), (20000, (30, None))):
        generator = torch.Generator().manual_seed(count)
        scores = torch.rand(count, generator=generator).to(device)
        objects = random_boxes(count // 50, 1, 32, 400).repeat_interleave(50, dim=0)
        sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
        crowded = objects + torch.randn(count, 4, generator=generator) * 0.1 * sides
        for name, boxes in (("random", random_boxes(count, count)), ("overlapping", crowded)):
            boxes = boxes.to(device)
            yield Case(
                f"nms, {count} boxes, {name}",
                lambda boxes=boxes, scores=scores: ops.nms(boxes, scores, 0.7),
                lambda boxes=boxes, scores=scores: tv.nms(boxes, scores, 0.7),
                wanted,
                count * 28,
            )


def mask_tensors() -> tuple[Tensor, Tensor]:
    """100 smooth masks 28 x 28, and boxes on an image of 800 x 1088."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(100, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=28, mode="bicubic").clamp(0, 1)
    boxes = random_boxes(100, 0)
    return masks, boxes.clamp(max=torch.tensor([1088.0, 800, 1088, 800]))


def mask_sides() -> tuple[Callable[[], object], Callable[[], object]]:
    """Run-length codes of the masks, ours and by pasting."""
    masks, boxes = mask_tensors()

    def peer() -> object:
        pasted = paste_masks_in_image(masks, boxes, (800, 1088)) > 0.5
        return [coco_mask.encode(np.asfortranarray(page)) for page in pasted[:, 0].byte().numpy()]

    return lambda: ops.masks_to_rle(masks[:, 0], boxes, (800, 1088), aligned=False), peer


def mask_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Work of the CPU alone."""
    if device.type == "cpu":
        masks, _ = mask_tensors()
        yield Case("100 masks to RLE", *mask_sides(), (15, None), masks.numel() * 4)


def focal_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Forward and backward of RetinaNet's logits: 2 images, 100,000 anchors, 20 classes."""
    logits = torch.randn(2, 100_000, 20, device=device, dtype=dtype)
    targets = (torch.rand_like(logits) > 0.99).to(dtype)

    def call(loss: Callable[..., Tensor]) -> Callable[[], object]:
        x = logits.clone().requires_grad_()
        return lambda: torch.autograd.grad(loss(x, targets, reduction="sum"), x)

    yield Case(
        "sigmoid_focal_loss, forward and backward",
        call(ops.sigmoid_focal_loss),
        call(tv.sigmoid_focal_loss),
        (3, None),
        logits.numel() * dtype.itemsize * 7,  # logits and targets twice, loss, its sum, gradient
        logits.numel() * 100,
    )


GROUPS = {
    "roi_align": roi_align_cases,
    "multiscale": multiscale_cases,
    "nms": nms_cases,
    "masks": mask_cases,
    "focal": focal_cases,
}
