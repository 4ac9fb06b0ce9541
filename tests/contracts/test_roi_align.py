"""What every backend of RoIAlign must do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.ops
from torch import Tensor

from instseg import ops
from tests.contracts import reference

pytestmark = pytest.mark.usefixtures("backend")

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 11.2],
        [1, -5.0, -3.0, 4.0, 6.0],
        [0, 10.0, 10.0, 40.0, 30.0],
        [1, 5.0, 5.0, 5.0, 5.0],
        [0, 3.2, 3.2, 3.9, 3.6],
        [1, 60.0, 60.0, 90.0, 90.0],
        [1, 9.0, 8.0, 2.0, 3.0],
        [0, 0.0, 0.0, 15.0, 12.0],
    ],
    dtype=torch.float64,
)
CORNERS = torch.tensor(
    [
        [0, -0.5, -0.5, 15.5, 12.5],
        [1, -2.0, 3.0, 0.0, 5.0],
        [1, 13.9, 0.0, 16.1, 3.0],
        [0, 14.0, 11.0, 15.0, 12.0],
        [0, -1e4, -1e4, 1e4, 1e4],
        [1, -3e8, 2.0, 3e8, 9.0],
        [0, 1e20, 1e20, 2e20, 2e20],
        [1, 3.0, 2.0, 3.0, 9.0],
    ],
    dtype=torch.float64,
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def features(channels: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 12, 15, generator=generator, dtype=torch.float64).to(dtype)


def definition(feature: Tensor, rois: Tensor, *arguments) -> np.ndarray:
    return reference.roi_align(feature.double().numpy(), rois.double().numpy(), *arguments)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_its_definition(layout, aligned, sampling_ratio, scale):
    feature = features().contiguous(memory_format=layout)
    got = ops.roi_align(feature, ROIS, (3, 2), scale, sampling_ratio, aligned)
    wanted = definition(feature, ROIS, (3, 2), scale, sampling_ratio, aligned)
    assert np.allclose(got.numpy(), wanted, atol=1e-12)
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("sampling_ratio", [1, 3])
def test_boxes_at_and_far_beyond_the_border(sampling_ratio):
    feature = features()
    got = ops.roi_align(feature, CORNERS, (3, 2), 1.0, sampling_ratio)
    wanted = definition(feature, CORNERS, (3, 2), 1.0, sampling_ratio, True)
    assert np.allclose(got.numpy(), wanted, atol=1e-12)


def test_more_samples_than_pixels():
    feature = features()[:, :1, :4, :3]
    rois = torch.tensor([[1, -0.5, 0.3, 2.5, 3.1], [0, 1, 1, 1.5, 1.2]], dtype=torch.float64)
    got = ops.roi_align(feature, rois, (2, 1), 1.0, 20)
    assert np.allclose(got.numpy(), definition(feature, rois, (2, 1), 1.0, 20, True), atol=1e-12)


def test_boxes_without_length_alone():
    feature = torch.ones(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 2.0, 2, 2, 2], [0, 3.0, 3, 1, 1]], dtype=torch.float64)
    pooled = ops.roi_align(feature, rois, 2)
    assert torch.equal(pooled, torch.zeros(2, 2, 2, 2, dtype=torch.float64))
    assert torch.autograd.grad(pooled.sum(), feature)[0].abs().sum() == 0


def test_boxes_longer_than_the_largest_number():
    boxes = torch.tensor([[0, -3e38, -3e38, 3e38, 3e38], [1, -3e38, 1, 3e38, 9]])
    for sampling_ratio in (0, 2):
        pooled = ops.roi_align(features(dtype=torch.float32), boxes, 2, 1.0, sampling_ratio)
        assert torch.equal(pooled, torch.zeros(2, 3, 2, 2))


def test_adaptive_sampling_of_huge_boxes_takes_no_longer():
    """Each bin of a box of 10^8 px has 10^8 samples, most of them outside the map."""
    feature = torch.ones(1, 1, 12, 15, dtype=torch.float64)
    boxes = torch.tensor([[0, -1e8, -1e8, 1e8, 1e8], [0, 1e15, 1e15, 3e15, 3e15]]).double()
    pooled = ops.roi_align(feature, boxes, 2)
    # On an axis a bin holds half of the samples on the map: those in [-1, size], 1e-8 of its own.
    assert torch.allclose(
        pooled[0, 0].sum(), torch.tensor(14.0 * 17 / 1e16, dtype=torch.float64), rtol=0.2
    )
    assert pooled[1].sum() == 0


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_torchvision(sampling_ratio, aligned):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, 19, 30, 40, generator=generator)
    corner = torch.rand(24, 2, generator=generator) * 120 - 10
    boxes = torch.cat([corner, corner + torch.rand(24, 2, generator=generator) * 90], dim=1)
    rois = torch.cat([torch.randint(0, 2, (24, 1), generator=generator).float(), boxes], dim=1)
    got = ops.roi_align(feature, rois, 4, 0.25, sampling_ratio, aligned)
    wanted = torchvision.ops.roi_align(feature, rois, 4, 0.25, sampling_ratio, aligned)
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [1, 5, 35])
def test_dtypes_are_summed_wide_and_rounded_once(backend, layout, dtype, channels):
    feature = features(channels, dtype).contiguous(memory_format=layout)
    got = ops.roi_align(feature, ROIS.float(), 3, 0.5, 2)
    wanted = definition(feature, ROIS, (3, 3), 0.5, 2, True)
    assert got.dtype == dtype
    # Half of the distance of neighbouring numbers, and float32's own error. Triton's interpreter
    # cuts bfloat16 off where a GPU rounds.
    steps = 1 if backend == "triton" else 0.5
    error = np.abs(got.double().numpy() - wanted)
    assert (error <= np.abs(wanted) * torch.finfo(dtype).eps * steps + 1e-5).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_gradient(backend, layout, sampling_ratio):
    shape = (2, 1, 3, 2) if backend == "triton" else (2, 2, 7, 6)  # an interpreter is slow
    feature = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    feature.requires_grad_()
    rois = torch.tensor(
        [[1, 0.6, 1.1, 4.3, 5.2], [1, -2, 3.0, 4, 9], [1, 2, 2, 2.4, 2.2]], dtype=torch.float64
    )
    assert torch.autograd.gradcheck(
        lambda f: ops.roi_align(f, rois, (3, 2), 1.0, sampling_ratio), feature
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_of_many_boxes_equal_those_in_double(layout, dtype):
    generator = torch.Generator().manual_seed(2)
    feature = features(18, dtype).contiguous(memory_format=layout).requires_grad_()
    corner = torch.rand(12, 2, generator=generator) * 12
    boxes = torch.cat([corner, corner + torch.rand(12, 2, generator=generator) * 9], dim=1)
    rois = torch.cat([torch.randint(0, 2, (12, 1), generator=generator).float(), boxes], dim=1)
    pooled = ops.roi_align(feature, rois, 3, 1.0, 2)
    grad = torch.randn(pooled.shape, generator=generator).to(dtype)
    pooled.backward(grad)
    double = feature.detach().double().contiguous().requires_grad_()
    with ops.use_backend("torch"):
        ops.roi_align(double, rois.double(), 3, 1.0, 2).backward(grad.double())
    assert feature.grad.dtype == dtype
    assert feature.grad.is_contiguous(memory_format=layout)
    assert torch.allclose(
        feature.grad.double(), double.grad, atol=1e-4, rtol=torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_pyramid_pools_each_box_from_its_level(sampling_ratio):
    strides = (4, 8, 16)
    maps = [torch.randn(2, 3, 64 // s, 96 // s, dtype=torch.float64) for s in strides]
    boxes = [torch.tensor([[1.0, 2, 9, 12], [0, 0, 90, 60]]), torch.tensor([[3.0, 4, 25, 24]])]
    arguments = (sampling_ratio, True, 32.0)
    got = ops.multiscale_roi_align(maps, [b.double() for b in boxes], 2, strides, *arguments)
    rois = ops.boxes_to_rois([b.double() for b in boxes])
    levels = ops.assign_levels(rois[:, 1:], strides, 32.0).tolist()
    assert len(set(levels)) == 3
    for k, level in enumerate(levels):
        wanted = definition(
            maps[level], rois[k : k + 1], (2, 2), 1 / strides[level], sampling_ratio, True
        )
        assert np.allclose(got[k].numpy(), wanted[0], atol=1e-12)


def test_pyramid_gradient():
    strides = (4, 8)
    maps = [torch.randn(1, 1, 16 // s, 16 // s, dtype=torch.float64) for s in strides]
    boxes = torch.tensor([[0, 1.0, 2, 6, 7], [0, 0, 0, 15, 20]], dtype=torch.float64)

    def pool(*features):
        return ops.multiscale_roi_align(features, boxes, 2, strides, canonical_size=30.0)

    assert set(ops.assign_levels(boxes[:, 1:], strides, 30.0).tolist()) == {0, 1}
    assert torch.autograd.gradcheck(pool, [m.requires_grad_() for m in maps])


def test_without_boxes_and_with_lists():
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    none = ops.roi_align(feature, torch.zeros(0, 5), 4)
    assert none.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(none.sum(), feature)[0].abs().sum() == 0
    boxes = [torch.tensor([[1.0, 1, 5, 6]]), torch.tensor([[0.0, 2, 7, 7], [3, 3, 4, 4]])]
    rois = ops.boxes_to_rois(boxes)
    assert rois[:, 0].tolist() == [0, 1, 1]
    assert torch.equal(ops.roi_align(feature, boxes, 4), ops.roi_align(feature, rois, 4))
    module = ops.RoIAlign(4)
    assert torch.equal(module(feature, boxes), ops.roi_align(feature, rois, 4))


def test_views_of_larger_tensors():
    large = torch.randn(3, 8, 20, 24)
    view = large[1:, 2:6, 3:15, ::2]
    boxes = torch.randn(4, 7)[:, 1:6]
    boxes[:, 0] = torch.tensor([0, 1, 1, 0])
    boxes[:, 3:] += 5
    assert torch.equal(
        ops.roi_align(view, boxes, 3), ops.roi_align(view.contiguous(), boxes.contiguous(), 3)
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_nothing_depends_on_threads_or_chance(backend, threads, layout):
    count, channels, side = (4, 3, 12) if backend == "triton" else (16, 20, 40)
    feature = torch.randn(2, channels, side, side).contiguous(memory_format=layout)
    feature.requires_grad_()
    corner = torch.rand(count, 2) * side / 2
    size = torch.rand(count, 2) * side / 2
    rois = torch.cat([torch.arange(count)[:, None] % 2, corner, corner + size], dim=1)
    grad = torch.randn(count, channels, 3, 3)
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        pooled = ops.roi_align(feature, rois, 3, 1.0, 2)
        results.append((pooled, *torch.autograd.grad(pooled, feature, grad)))
    for pooled, gradient in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_deterministic_algorithms_are_no_reason_to_refuse():
    feature = torch.randn(1, 2, 8, 8, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        ops.roi_align(feature, torch.tensor([[0, 1.0, 1, 6, 6]]), 2).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert feature.grad.sum() == pytest.approx(8.0, rel=1e-5)  # 2 channels x 4 bins


def test_maps_of_more_than_two_to_the_31_values(backend):
    if backend != "ext":
        pytest.skip("others copy the whole map; untouched zeros take no memory here")
    feature = torch.zeros(1, 6000, 6000, 64, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    assert feature.numel() > 1 << 31
    feature[:, :, 5980:, 5980:] = 1
    rois = torch.tensor([[0, 5985.0, 5985, 5995, 5995], [0, 5.0, 5, 15, 15]])
    pooled = ops.roi_align(feature, rois, 2)
    assert pooled.flatten(1).unique(dim=1).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_registration(layout):
    maps = [torch.randn(2, 4, 12, 9), torch.randn(2, 4, 6, 5)]
    maps = [m.contiguous(memory_format=layout).requires_grad_() for m in maps]
    levels = torch.tensor([0, 1, 0, 1])
    arguments = (maps, ROIS[:4].float(), levels, [1.0, 0.5], 3, 2, 2, True)
    torch.library.opcheck(torch.ops.instseg.roi_align.default, arguments)
    arguments = ([maps[0]], ROIS[:4].float(), None, [1.0], 3, 2, -1, False)
    torch.library.opcheck(torch.ops.instseg.roi_align.default, arguments)


def test_compiles_and_exports_without_breaks():
    class Pool(torch.nn.Module):
        def forward(self, fine, coarse, rois):
            fine = fine * 2
            many = ops.multiscale_roi_align([fine, coarse], rois, 3, (4, 8))
            return many + ops.roi_align(fine, rois, 3, 0.25)

    arguments = (torch.randn(2, 3, 20, 24), torch.randn(2, 3, 10, 12), ROIS.float())
    wanted = Pool()(*arguments)
    compiled = torch.compile(Pool(), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*arguments), wanted, atol=1e-6)
    exported = torch.export.export(Pool(), arguments)
    assert torch.allclose(exported.module()(*arguments), wanted, atol=1e-6)


def test_under_autocast_the_dtype_of_the_features_stays():
    feature = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.nn.functional.conv2d(feature, torch.randn(4, 4, 1, 1))
        pooled = ops.roi_align(hidden, torch.tensor([[0, 1.0, 1, 6, 6]]), 2)
        assert hidden.dtype == pooled.dtype == torch.bfloat16
        pooled.float().sum().backward()
    assert feature.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("feature", "boxes", "size", "error", "message"),
    [
        ((3, 8, 8), (1, 5), 4, ValueError, r"input must be \[B, C, H, W\], got \[3, 8, 8\]"),
        ((1, 3, 0, 8), (1, 5), 4, ValueError, "input must have at least one pixel"),
        ((1, 3, 8, 8), (1, 4), 4, ValueError, r"boxes must be \[K, 5\].*got \[1, 4\]"),
        ((1, 3, 8, 8), (1, 5), 0, ValueError, "output_size must be at least 1, got 0"),
        ((1, 3, 8, 8), (1, 5), (3, -1), ValueError, r"at least 1, got \(3, -1\)"),
        ((1, 3, 8, 8), (1, 5), 2.5, TypeError, "whole number or two, got 2.5"),
    ],
)
def test_refuses_wrong_shapes(feature, boxes, size, error, message):
    with pytest.raises(error, match=message):
        ops.roi_align(torch.zeros(feature), torch.zeros(boxes), size)


def test_refuses_what_does_not_fit():
    feature = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="boxes must be 2 tensors"):
        ops.roi_align(feature, [torch.zeros(1, 4)], 4)
    with pytest.raises(TypeError, match=r"input must be a floating tensor, got torch\.int64"):
        ops.roi_align(feature.long(), torch.zeros(1, 5), 4)
    with pytest.raises(TypeError, match="boxes must be a floating tensor"):
        ops.roi_align(feature, torch.zeros(1, 5, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="spatial_scale must be positive and finite, got 0"):
        ops.roi_align(feature, torch.zeros(1, 5), 4, 0)
    with pytest.raises(ValueError, match=r"boxes must be on the device.*cpu, got meta"):
        ops.roi_align(feature, torch.zeros(1, 5, device="meta"), 4)
    with pytest.raises(ValueError, match=r"features must be one map for each.*got 1"):
        ops.multiscale_roi_align([feature], torch.zeros(1, 5), 4, (4, 8))
    with pytest.raises(ValueError, match=r"features\[1\] must have the batch and channels"):
        ops.multiscale_roi_align([feature, feature[:1]], torch.zeros(1, 5), 4, (4, 8))
    with pytest.raises(TypeError, match=r"features\[1\] must be torch.float32"):
        ops.multiscale_roi_align([feature, feature.double()], torch.zeros(1, 5), 4, (4, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_boxes_that_are_not_finite(value):
    rois = torch.zeros(3, 5)
    rois[1, 2] = value
    with pytest.raises(ValueError, match=r"boxes must be finite, row 1 is \[0.0, 0.0, (nan|inf)"):
        ops.roi_align(torch.zeros(1, 3, 8, 8), rois, 4)


@pytest.mark.parametrize("index", [-1, 2, 0.5])
def test_refuses_batch_indices_out_of_range(index):
    rois = torch.zeros(3, 5)
    rois[2, 0] = index
    with pytest.raises(ValueError, match=rf"batch index in 0\.\.1, row 2 has {index:g}"):
        ops.roi_align(torch.zeros(2, 3, 8, 8), rois, 4)


def test_unchecked_bad_boxes_pool_zeros_and_get_no_gradient(monkeypatch):
    """What a GPU does, where looking would cost a synchronisation."""
    monkeypatch.setattr("instseg.ops.check.looks_inside", lambda value: False)
    rois = torch.tensor([[0, 1.0, 1, 6, 6]]).repeat(5, 1)
    rois[0, 3], rois[1, 0], rois[2, 0], rois[3, 2] = float("nan"), 7, -1, float("inf")
    feature = torch.randn(1, 3, 8, 8, requires_grad=True)
    pooled = ops.roi_align(feature, rois, 2)
    assert pooled[:4].abs().sum() == 0
    assert pooled[4].abs().sum() > 0
    grad = torch.ones_like(pooled)
    grad[4] = 0
    assert torch.autograd.grad(pooled, feature, grad)[0].abs().sum() == 0
