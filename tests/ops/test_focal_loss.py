"""The focal loss against its definition, torchvision and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops as tv

from instseg.ops import use_backend
from instseg.ops.focal_loss import sigmoid_focal_loss

ALPHAS, GAMMAS = [0.25, 0.0, 1.0, -1], [2.0, 0.0, 0.5, 1.0, 3.5]


@pytest.fixture(params=["chosen", "torch"], autouse=True)
def backend(request):
    """The fastest backend that is there, and plain PyTorch."""
    if request.param == "chosen":
        yield
    else:
        with use_backend("torch"):
            yield


def scene(dtype: torch.dtype = torch.float64, *, soft: bool = False):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 37, generator=generator, dtype=torch.float64) * 6
    targets = torch.rand(5, 37, generator=generator, dtype=torch.float64)
    return logits.to(dtype), (targets if soft else (targets > 0.7)).to(dtype)


def definition(x: float, t: float, alpha: float, gamma: float) -> float:
    # Neither 1 - p nor the log of a p near 1 is computed: float64 would lose digits.
    p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(x))
    cross = t * math.log1p(math.exp(-x)) + (1 - t) * math.log1p(math.exp(x))
    miss = p * (1 - t) + q * t  # 1 - p_t
    weight = 1.0 if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    return weight * miss**gamma * cross


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_equals_the_definition_and_torchvision(alpha, gamma, soft):
    logits, targets = scene(soft=soft)
    got = sigmoid_focal_loss(logits, targets, alpha, gamma)
    pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
    wanted = torch.tensor([definition(x, t, alpha, gamma) for x, t in pairs], dtype=torch.float64)
    assert torch.allclose(got.flatten(), wanted, rtol=1e-7, atol=1e-14)
    assert torch.allclose(got, tv.sigmoid_focal_loss(logits, targets, alpha, gamma), atol=1e-12)
    narrow = sigmoid_focal_loss(logits.float(), targets.float(), alpha, gamma)
    assert torch.allclose(narrow.double(), got, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient(alpha, gamma, soft):
    logits, targets = scene(soft=soft)
    logits = logits[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, targets[:2], alpha, gamma), logits
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reductions_and_their_gradients_are_torchvisions(reduction, dtype):
    results = []
    for function in (sigmoid_focal_loss, tv.sigmoid_focal_loss):
        logits, targets = scene(dtype)
        logits.requires_grad_()
        loss = function(logits, targets, reduction=reduction)
        (loss * torch.arange(1, loss.numel() + 1, dtype=dtype).view(loss.shape)).sum().backward()
        results.append((loss.detach(), logits.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_are_finite_and_right(gamma, dtype):
    logits = torch.tensor([-3e4, 3e4, -200, 200, 0], dtype=dtype).repeat(2).requires_grad_()
    targets = torch.tensor([0.0] * 5 + [1.0] * 5, dtype=dtype)
    loss = sigmoid_focal_loss(logits, targets, -1, gamma)
    loss.sum().backward()
    x = [float(v) for v in logits.detach()[[1, 3]]]
    log2 = math.log(2) * 0.5**gamma
    wanted = [0, x[0], 0, x[1], log2, x[0], 0, x[1], 0, log2]
    assert loss.tolist() == pytest.approx(wanted, rel=1e-2)
    assert logits.grad[:4].tolist() == pytest.approx([0, 1, 0, 1], abs=1e-6)
    assert logits.grad[5:9].tolist() == pytest.approx([-1, 0, -1, 0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_computes_in_float32(dtype, autocast):
    logits, targets = scene(dtype)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        loss = sigmoid_focal_loss(logits, targets)
        total = sigmoid_focal_loss(logits, targets.float(), reduction="sum")
    total.backward()
    wide = logits.detach().float().requires_grad_()
    wanted = sigmoid_focal_loss(wide, targets.float())
    wanted.sum().backward()
    assert loss.dtype == logits.grad.dtype == dtype
    assert torch.allclose(loss.float(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert torch.allclose(logits.grad.float(), wide.grad, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert total.item() == pytest.approx(wanted.sum().item(), rel=1e-2)


def test_layouts():
    logits, targets = (torch.rand(2, 3, 4, 5) for _ in range(2))
    wanted = sigmoid_focal_loss(logits, targets)
    last = sigmoid_focal_loss(logits.to(memory_format=torch.channels_last), targets)
    assert last.is_contiguous(memory_format=torch.channels_last)
    # Not to the bit: vectors and what is left over of them round differently.
    assert torch.allclose(last, wanted, rtol=1e-6)
    strided = torch.rand(2, 3, 4, 10)[..., ::2].copy_(logits).requires_grad_()
    loss = sigmoid_focal_loss(strided, targets.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.allclose(loss, wanted, rtol=1e-6)
    weights = torch.rand(2, 3, 5, 4).transpose(2, 3)
    (loss * weights).sum().backward()
    plain = logits.clone().requires_grad_()
    (sigmoid_focal_loss(plain, targets) * weights).sum().backward()
    assert torch.allclose(strided.grad, plain.grad, atol=1e-6)


def test_no_elements():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros(0, 4), reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 4)
    assert sigmoid_focal_loss(logits, torch.zeros(0, 4), reduction="mean").isnan()


def test_targets_get_no_gradient():
    logits, targets = scene()
    loss = sigmoid_focal_loss(logits, targets.requires_grad_())
    assert not loss.requires_grad


def test_opcheck_and_compile():
    logits, targets = scene(torch.float32)
    logits.requires_grad_()
    torch.library.opcheck(
        torch.ops.instseg.sigmoid_focal_loss.default, (logits, targets, 0.25, 2.0)
    )
    last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.library.opcheck(
        torch.ops.instseg.sigmoid_focal_loss_backward.default,
        (torch.ones(()).expand(2, 3, 4, 5), last, torch.rand(2, 3, 4, 5), 0.25, 2.0),
    )
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True, backend="aot_eager")
    loss = compiled(logits, targets, reduction="sum")
    loss.backward()
    wanted = scene(torch.float32)[0].requires_grad_()
    sigmoid_focal_loss(wanted, targets, reduction="sum").backward()
    assert torch.equal(logits.grad, wanted.grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": torch.zeros(2).long()}, TypeError, "inputs must be a floating tensor"),
        ({"targets": torch.zeros(2).long()}, TypeError, "targets must be a floating tensor"),
        ({"targets": torch.zeros(1)}, ValueError, r"targets must be \[2\], got \[1\]"),
        ({"targets": torch.zeros(2, device="meta")}, ValueError, "on the device of inputs"),
        ({"alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\] or -1, got 1.5"),
        ({"gamma": -0.5}, ValueError, "gamma must be at least 0 and finite, got -0.5"),
        ({"reduction": "max"}, ValueError, "reduction must be one of none, mean, sum, got 'max'"),
    ],
)
def test_refuses(change, error, message):
    arguments = {"inputs": torch.zeros(2), "targets": torch.zeros(2)} | change
    with pytest.raises(error, match=message):
        sigmoid_focal_loss(**arguments)
