"""RoI pooling, plain and position-sensitive, against loops, torchvision and finite differences."""

from __future__ import annotations

import importlib
import math
import time

import numpy as np
import pytest
import torch
import torchvision.ops as tv

from instseg.ops.ps_roi import PSRoIAlign, PSRoIPool, ps_roi_align, ps_roi_pool
from instseg.ops.roi_pool import RoIPool, roi_pool
from tests.contracts import reference

OPS = {"roi_pool": roi_pool, "ps_roi_align": ps_roi_align, "ps_roi_pool": ps_roi_pool}
# The packages' attributes of these names may be the functions.
torch_roi_pool = importlib.import_module("instseg.ops._torch.roi_pool")
torch_ps_roi = importlib.import_module("instseg.ops._torch.ps_roi")
SIZE = (3, 2)
ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 11.2],
        [1, -5.0, -3.0, 4.0, 6.0],
        [0, 10.0, 10.0, 40.0, 30.0],
        [1, 5.0, 5.0, 5.0, 5.0],  # no area
        [0, 3.2, 3.2, 3.9, 3.6],
        [1, 60.0, 60.0, 90.0, 90.0],  # outside
        [0, 9.0, 9.0, 4.0, 3.0],  # inverted
        [1, 0.0, 0.0, 15.0, 12.0],  # the whole map
        [0, 0.5, 1.5, 2.5, 10.5],  # halves: rounded away from zero
        [1, -2.5, -0.5, 6.5, 3.5],
        [0, -40.0, -30.0, 50.0, 60.0],  # beyond the map on all sides
    ],
    dtype=torch.float64,
)


def feature_map(dtype: torch.dtype = torch.float64, channels: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 12, 15, generator=generator, dtype=torch.float64).to(dtype)


def away(value: float) -> int:
    """Rounded, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def whole_bins(low: float, high: float, bins: int, limit: int, inclusive: int) -> list[range]:
    start = away(low)
    length = max(away(high) - start + inclusive, 1)
    ends = [
        (start + math.floor(i * length / bins), start + math.ceil((i + 1) * length / bins))
        for i in range(bins)
    ]
    return [range(max(a, 0), min(b, limit)) for a, b in ends]


def loop(name: str, feature: np.ndarray, rois: np.ndarray, scale: float, ratio: int) -> np.ndarray:
    """Each bin on its own, from the definitions."""
    _, channels, height, width = feature.shape
    high, wide = SIZE
    if name == "ps_roi_align":
        # The bins of RoIAlign, each from channels of its own.
        aligned = reference.roi_align(feature, rois, SIZE, scale, ratio, True)
        split = aligned.reshape(len(rois), -1, high, wide, high, wide)
        return np.einsum("kcijij->kcij", split)
    sensitive = name == "ps_roi_pool"
    output = np.zeros((len(rois), channels // (high * wide if sensitive else 1), high, wide))
    for k, (image, x1, y1, x2, y2) in enumerate(rois):
        edge = 1 if sensitive else 0
        rows = whole_bins(y1 * scale, y2 * scale, high, height - edge, 1 - edge)
        columns = whole_bins(x1 * scale, x2 * scale, wide, width - edge, 1 - edge)
        for c, i, j in np.ndindex(output.shape[1:]):
            plane = feature[int(image), (c * high + i) * wide + j if sensitive else c]
            values = [plane[y, x] for y in rows[i] for x in columns[j]]
            if values:
                output[k, c, i, j] = np.mean(values) if sensitive else max(values)
    return output


def call(name: str, feature: torch.Tensor, rois, scale: float = 1.0, ratio: int = 2):
    return OPS[name](feature, rois, SIZE, scale, *([ratio] if name == "ps_roi_align" else []))


def torchvisions(name: str, feature: torch.Tensor, rois, scale: float = 1.0, ratio: int = 2):
    extra = [ratio] if name == "ps_roi_align" else []
    return getattr(tv, name)(feature, rois, SIZE, scale, *extra)


def random_rois(n: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    rois = torch.rand(n, 5, generator=generator, dtype=torch.float64) * 24 - 4
    rois[:, 3:] = rois[:, 1:3] + rois[:, 3:] / 2  # some are inverted
    rois[: n // 2, 1:] = (rois[: n // 2, 1:] * 2).round() / 2  # half of them on half pixels
    rois[:, 0] = torch.arange(n) % 2
    return rois.to(dtype)


@pytest.mark.parametrize("ratio", [-1, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", OPS)
def test_equals_the_definition(name, scale, ratio):
    feature = feature_map()
    got = call(name, feature, ROIS, scale, ratio)
    wanted = loop(name, feature.numpy(), ROIS.numpy(), scale, ratio)
    assert got.shape == wanted.shape
    assert np.allclose(got.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("name", OPS)
def test_equals_torchvision(name, ratio, dtype):
    feature = feature_map(dtype)
    rois = torch.cat([ROIS.to(dtype), random_rois(300, dtype)])
    for scale in (1.0, 0.25, 0.3):
        got = call(name, feature, rois, scale, ratio)
        # Torchvision's 0 / 0, where adaptive sampling takes no samples.
        wanted = torchvisions(name, feature, rois, scale, ratio).nan_to_num(0)
        assert torch.allclose(got, wanted, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("name", OPS)
def test_gradient(name, ratio):
    feature = feature_map(channels=6)[:, :, :4, :5].clone().requires_grad_()
    rois = ROIS[[0, 1, 4, 7]]
    assert torch.autograd.gradcheck(lambda f: call(name, f, rois, 0.4, ratio), feature)


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_align"])
def test_gradient_is_torchvisions(name):
    rois = random_rois(300, torch.float64)
    grads = []
    for function in (call, torchvisions):
        feature = feature_map().round().requires_grad_()  # ties: the first of the largest
        pooled = function(name, feature, rois)
        (pooled * torch.arange(pooled.numel()).view(pooled.shape)).sum().backward()
        grads.append(feature.grad)
    assert torch.allclose(*grads, rtol=1e-12)


@pytest.mark.parametrize("name", OPS)
def test_extreme_boxes_take_little_time_and_memory(name):
    feature = torch.randn(1, 6, 60, 70, requires_grad=True)
    span = torch.tensor([1e3, 1e6, 1e9, 1e12, 1e30, 3e38])
    zero = torch.zeros_like(span)
    rois = torch.cat(
        [
            torch.stack([zero, -span, -span, span, span], dim=1),
            torch.stack([zero, span / 2, span / 2, span, span], dim=1),
            torch.stack([zero, span, span, -span, -span], dim=1),
        ]
    ).repeat(4, 1)
    start = time.perf_counter()
    with torch.profiler.profile(profile_memory=True) as profile:
        pooled = call(name, feature, rois, 1.0, -1)
        pooled.sum().backward()
    assert time.perf_counter() - start < 20
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(sizes) < 64 << 20
    assert pooled.isfinite().all()
    assert feature.grad.isfinite().all()
    if name == "roi_pool":  # the middle row of three bins, left and right of the origin
        assert torch.equal(pooled[0, :, 1, 1], feature[0].amax(dim=(1, 2)))


@pytest.mark.parametrize("name", OPS)
def test_without_boxes(name):
    feature = feature_map().requires_grad_()
    pooled = call(name, feature, ROIS[:0])
    assert pooled.shape == (0, 12 if name == "roi_pool" else 2, *SIZE)
    pooled.sum().backward()
    assert feature.grad.abs().sum() == 0


@pytest.mark.parametrize("name", OPS)
def test_lists_of_boxes_and_modules(name):
    feature = feature_map(torch.float32)
    rois = ROIS.float()
    lists = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    wanted = call(name, feature, torch.cat([rois[rois[:, 0] == i] for i in range(2)]), 0.5)
    assert torch.equal(call(name, feature, lists, 0.5), wanted)
    modules = {
        "roi_pool": RoIPool(SIZE, 0.5),
        "ps_roi_align": PSRoIAlign(SIZE, 0.5, 2),
        "ps_roi_pool": PSRoIPool(SIZE, 0.5),
    }
    assert torch.equal(modules[name](feature, lists), wanted)


@pytest.mark.parametrize("name", OPS)
def test_layouts_agree_and_stay(name):
    plain = feature_map(torch.float32).requires_grad_()
    last = feature_map(torch.float32).to(memory_format=torch.channels_last).requires_grad_()
    strided = torch.empty(2, 12, 12, 30)[..., ::2].copy_(plain.detach()).requires_grad_()
    pooled = [call(name, feature, ROIS) for feature in (plain, last, strided)]
    assert pooled[0].is_contiguous()
    assert pooled[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled[0], pooled[1])
    assert torch.equal(pooled[0], pooled[2])
    weights = torch.rand(pooled[0].shape[::-1]).permute(3, 2, 1, 0)  # an odd layout
    for values in pooled:
        (values * weights).sum().backward()
    assert last.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.grad, last.grad)
    assert torch.equal(plain.grad, strided.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_half_precision_sums_in_float32(name, dtype):
    feature = feature_map(dtype).requires_grad_()
    wide = feature.detach().float().requires_grad_()
    got, wanted = call(name, feature, ROIS), call(name, wide, ROIS.float())
    assert got.dtype == dtype
    assert torch.equal(got, wanted.to(dtype))
    weights = torch.rand(got.shape).to(dtype)
    (got * weights).sum().backward()
    (wanted * weights.float()).sum().backward()
    assert torch.equal(feature.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("name", OPS)
def test_threads_and_pieces_change_nothing(name, monkeypatch):
    results = []
    threads = torch.get_num_threads()
    try:
        for count, pieces in ((1, None), (4, None), (4, 50)):
            torch.set_num_threads(count)
            if pieces:
                monkeypatch.setattr(torch_roi_pool, "_PAIRS", pieces)
                monkeypatch.setattr(torch_roi_pool, "_ROIS", 7)
            feature = feature_map(torch.float32, channels=24).requires_grad_()
            pooled = call(name, feature, random_rois(200, torch.float32))
            (pooled * pooled.detach()).sum().backward()
            results.append((pooled.detach(), feature.grad))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results[0], results[1]))
    assert torch.equal(results[0][0], results[2][0])
    assert torch.allclose(results[0][1], results[2][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_boxes_that_no_check_stopped_give_zeros(name):
    """What a GPU, where values are not looked at, computes for boxes without a place."""
    feature = feature_map(torch.float32)
    rois = torch.tensor(
        [[2, 1, 1, 5, 5], [-1, 1, 1, 5, 5], [0, math.nan, 1, 5, 5], [0, 1, 1, math.inf, 5.0]]
    )
    rois = torch.cat([rois, ROIS[:1].float()])
    module = torch_roi_pool if name == "roi_pool" else torch_ps_roi
    extra = [2] if name == "ps_roi_align" else []
    pooled = getattr(module, name)(feature, rois, 1.0, SIZE, *extra)
    pooled = pooled[0] if name == "roi_pool" else pooled
    assert pooled[:4].abs().sum() == 0
    assert torch.equal(pooled[4:], call(name, feature, ROIS[:1].float()))


@pytest.mark.parametrize("name", OPS)
def test_opcheck_and_compile(name):
    rois = ROIS[:3].float()
    extra = (2,) if name == "ps_roi_align" else ()
    for layout in (torch.contiguous_format, torch.channels_last):
        feature = feature_map(torch.float32).contiguous(memory_format=layout).requires_grad_()
        op = getattr(torch.ops.instseg, name)
        torch.library.opcheck(op.default, (feature, rois, 1.0, *SIZE, *extra))
        backward = getattr(torch.ops.instseg, f"{name}_backward").default
        plane = (2, 12, 15, layout == torch.channels_last)
        pooled = op(feature.detach(), rois, 1.0, *SIZE, *extra)
        if name == "roi_pool":
            arguments = (torch.ones(()).expand(pooled[0].shape), pooled[1], rois, *plane)
        else:
            arguments = (torch.ones(()).expand(pooled.shape), rois, 1.0, *extra, *plane)
        torch.library.opcheck(backward, arguments)
    compiled = torch.compile(
        lambda f, r: call(name, f, r).square(), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(feature, rois), call(name, feature, rois).square())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.zeros(6, 8, 8)}, ValueError, r"input must be \[B, C, H, W\]"),
        ({"input": torch.zeros(1, 6, 8, 8).long()}, TypeError, "input must be a floating"),
        ({"boxes": torch.zeros(1, 4)}, ValueError, r"boxes must be \[K, 5\].*got \[1, 4\]"),
        ({"output_size": (0, 2)}, ValueError, "output_size must be at least 1"),
        ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be positive"),
        ({"boxes": torch.tensor([[1.0, 0, 0, 1, 1]])}, ValueError, r"batch index in 0..0, row 0"),
        ({"boxes": torch.full((1, 5), math.nan)}, ValueError, "boxes must be finite, row 0"),
    ],
)
@pytest.mark.parametrize("name", OPS)
def test_refuses(name, change, error, message):
    arguments = {
        "input": torch.zeros(1, 6, 8, 8),
        "boxes": torch.zeros(1, 5),
        "output_size": SIZE,
        "spatial_scale": 1.0,
    }
    with pytest.raises(error, match=message):
        OPS[name](**(arguments | change))


@pytest.mark.parametrize("function", [ps_roi_align, ps_roi_pool])
def test_refuses_channels_that_fill_no_bins(function):
    with pytest.raises(ValueError, match=r"multiple of 3 \* 2 channels, got \[1, 7, 8, 8\]"):
        function(torch.zeros(1, 7, 8, 8), torch.zeros(1, 5), SIZE)
