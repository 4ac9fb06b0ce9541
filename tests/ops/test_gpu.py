"""The ops on a GPU, each backend against plain PyTorch on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from instseg import ops
from instseg.ops.backend import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STRIDES = (4, 8, 16)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in ops.available_backends("cuda"):
        pytest.skip(f"the {request.param} backend does not work here")
    with ops.use_backend(request.param):
        yield request.param


def random_boxes(n: int, size: float = 200.0) -> Tensor:
    side = 4 * 2 ** (5 * torch.rand(n, 2))
    corner = torch.rand(n, 2) * size - 10
    return torch.cat([corner, corner + side], dim=1)


def random_rois(n: int) -> Tensor:
    return torch.cat([torch.randint(0, 2, (n, 1)).float(), random_boxes(n)], dim=1)


def pyramid(dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    return [
        torch.randn(2, 72, 256 // s, 224 // s).to("cuda", dtype).contiguous(memory_format=layout)
        for s in STRIDES
    ]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align(backend, layout, dtype, sampling_ratio):
    maps, rois = [m.requires_grad_() for m in pyramid(dtype, layout)], random_rois(300)
    pooled = ops.multiscale_roi_align(maps, rois.cuda(), 7, STRIDES, sampling_ratio)
    grad = torch.randn(pooled.shape).to(dtype)
    grads = torch.autograd.grad(pooled, maps, grad.cuda())
    double = [m.detach().cpu().double().requires_grad_() for m in maps]
    with ops.use_backend("torch"):
        wanted = ops.multiscale_roi_align(double, rois, 7, STRIDES, sampling_ratio)
        wanted_grads = torch.autograd.grad(wanted, double, grad.double())
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 2e-4}
    torch.testing.assert_close(pooled.cpu().double(), wanted, **tolerance)
    for got, want, m in zip(grads, wanted_grads, maps, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, **tolerance)
        assert got.dtype == dtype
        assert got.stride() == m.stride()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_gradient_is_bit_equal_twice(backend, layout):
    feature = torch.randn(2, 64, 50, 60).cuda().contiguous(memory_format=layout).requires_grad_()
    rois = random_rois(500).cuda()
    pooled = ops.roi_align(feature, rois, 7, 0.25, 2)
    grad = torch.randn_like(pooled)
    first, second = (
        torch.autograd.grad(pooled, feature, grad, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("count", [0, 1, 64, 1000, 5000])
def test_nms(backend, count):
    boxes, scores = random_boxes(count), torch.rand(count)
    groups = torch.randint(0, 3, (count,))
    with ops.use_backend("torch"):
        wanted = ops.nms(boxes, scores, 0.5)
        wanted_by_group = ops.batched_nms(boxes, scores, groups, 0.5)
    on_gpu = [t.cuda() for t in (boxes, scores, groups)]
    assert torch.equal(ops.nms(*on_gpu[:2], 0.5).cpu(), wanted)
    assert torch.equal(ops.batched_nms(*on_gpu, 0.5).cpu(), wanted_by_group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_focal_loss(backend, dtype):
    logits = (torch.randn(3, 1000, 7) * 5).to(dtype)
    targets = (torch.rand(3, 1000, 7) > 0.9).to(dtype)
    x = logits.cuda().requires_grad_()
    loss = ops.sigmoid_focal_loss(x, targets.cuda(), reduction="sum")
    loss.backward()
    double = logits.double().requires_grad_()
    with ops.use_backend("torch"):
        wanted = ops.sigmoid_focal_loss(double, targets.double(), reduction="sum")
    wanted.backward()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.cpu().double(), wanted, rtol=4 * eps + 1e-4, atol=0)
    torch.testing.assert_close(x.grad.cpu().double(), double.grad, rtol=4 * eps + 1e-5, atol=1e-6)


def test_the_host_does_not_wait(backend):
    if backend == "torch":
        pytest.skip("plain PyTorch chooses shapes by values")
    maps, rois = pyramid(torch.float32, torch.channels_last), random_rois(300).cuda()
    boxes, scores = random_boxes(500).cuda(), torch.rand(500).cuda()
    maps = [m.requires_grad_() for m in maps]

    def work():
        ops.multiscale_roi_align(maps, rois, 7, STRIDES).sum().backward()
        ops.nms_mask(boxes, scores, None, 0.5)

    work()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bad_boxes_give_zeros_or_with_debugging_an_error(backend, monkeypatch):
    rois = torch.tensor([[0, 1.0, 1, 6, 6]]).repeat(5, 1)
    rois[0, 3], rois[1, 0], rois[2, 0], rois[3, 2] = float("nan"), 7, -1, float("inf")
    feature = torch.randn(1, 3, 8, 8, device="cuda", requires_grad=True)
    pooled = ops.roi_align(feature, rois.cuda(), 2)
    assert pooled[:4].abs().sum() == 0
    assert pooled[4].abs().sum() > 0
    monkeypatch.setenv("INSTSEG_DEBUG", "1")
    with pytest.raises(ValueError, match="boxes must be finite, row 0"):
        ops.roi_align(feature, rois.cuda(), 2)
    with pytest.raises(ValueError, match=r"batch index in 0\.\.0, row 0 has 7"):
        ops.roi_align(feature, rois[1:3].cuda(), 2)


def test_memory_of_the_backward_is_that_of_its_result(backend):
    if backend == "torch":
        pytest.skip("plain PyTorch keeps lists of pixels")
    feature = torch.randn(2, 256, 100, 160, device="cuda").contiguous(
        memory_format=torch.channels_last
    )
    feature.requires_grad_()
    pooled = ops.roi_align(feature, random_rois(100).cuda(), 7, 0.25, 2)
    grad = torch.randn_like(pooled)
    torch.autograd.grad(pooled, feature, grad, retain_graph=True)  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(pooled, feature, grad, retain_graph=True)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * feature.numel() * 4
