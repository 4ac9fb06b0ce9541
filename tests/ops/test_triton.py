"""The Triton kernels: interpreted on a CPU, compiled where there is a GPU."""

import os

import numpy as np
import pytest
import torch

# Read when triton is imported, which torchvision does. If that happened already, the tests below
# that need the interpreter are skipped with the reason.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton")

from instseg import ops
from instseg.ops import _torch, _triton
from tests.contracts import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LAYOUTS = [torch.contiguous_format, torch.channels_last]

# NumPy, in the interpreter, warns of what the kernels are to survive.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
runs = pytest.mark.skipif(_triton.why_not(DEVICE) is not None, reason=str(_triton.why_not(DEVICE)))


def kernels(name):
    return _triton.KERNELS[name], _torch.KERNELS[name]


def close(got, wanted):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    tolerance = TOLERANCE[got.dtype]
    assert torch.allclose(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


# --- RoIAlign -------------------------------------------------------------------------------------

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 11.2],
        [1, -5.0, -3.0, 4.0, 6.0],
        [0, 10.0, 7.0, 40.0, 30.0],
        [1, 5.0, 5.0, 5.0, 5.0],
        [0, 3.2, 3.2, 3.9, 3.6],
        [1, 9.0, 8.0, 2.0, 3.0],  # borders in the wrong order
        [1, 60.0, 60.0, 90.0, 90.0],
    ],
    dtype=torch.float64,
    device=DEVICE,
)
LEVELS = torch.tensor([0, 1, 0, 1, 0, 0, 1], device=DEVICE)
SIZES = [(5, 9), (3, 4)]


def pyramid(dtype=torch.float64, layout=torch.contiguous_format, channels=3):
    return [
        torch.randn(2, channels, *s, device=DEVICE).to(dtype).contiguous(memory_format=layout)
        for s in SIZES
    ]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@runs
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
def test_roi_align_equals_its_definition(aligned, sampling_ratio):
    feature = pyramid()[0]
    args = (0.6, sampling_ratio, aligned)
    run, _ = kernels("roi_align")
    got = run([feature], ROIS, None, [0.6], (3, 2), sampling_ratio, aligned)
    # The loop takes boxes of a negative length to have no adaptive samples, as it should.
    wanted = reference.roi_align(feature.cpu().numpy(), ROIS.cpu().numpy(), (3, 2), *args)
    assert np.allclose(got.cpu().numpy(), wanted, atol=1e-12)


@runs
def test_many_samples_of_a_small_box():
    feature = pyramid()[0][..., :2, :3]
    args = ((1, 1), 1.0, 25, True)
    wanted = reference.roi_align(feature.cpu().numpy(), ROIS[4:5].cpu().numpy() / 2, *args)
    roi = ROIS[4:5] / 2
    rest = (25, True)
    run, _ = kernels("roi_align")
    assert np.allclose(run([feature], roi, None, [1.0], (1, 1), *rest).cpu().numpy(), wanted)
    grad = torch.ones(wanted.shape, dtype=torch.float64, device=DEVICE)
    run, _ = kernels("roi_align_backward")
    (back,) = run(grad, roi, None, [1.0], *rest, 2, [(2, 3)], False)
    assert np.allclose((back * feature).sum((0, 2, 3)).cpu().numpy(), wanted[0, :, 0, 0])


@runs
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_roi_align_of_a_pyramid(dtype, layout):
    args = (pyramid(dtype, layout), ROIS.to(wide(dtype)), LEVELS, [0.5, 0.25], (3, 2), 2, True)
    got, wanted = (run(*args) for run in kernels("roi_align"))
    close(got, wanted)
    assert got.stride() == wanted.stride()


@runs
@pytest.mark.parametrize("layout", LAYOUTS)
def test_roi_align_of_more_bins_and_channels_than_a_program_has(layout):
    features = [f.contiguous(memory_format=layout) for f in pyramid(torch.float32, channels=272)]
    args = (features, ROIS[:3].float(), LEVELS[:3], [0.5, 0.25], (9, 8), 1, True)
    close(*(run(*args) for run in kernels("roi_align")))


@runs
def test_roi_align_reads_maps_through_their_strides():
    big = torch.randn(2, 20, 12, 15, device=DEVICE)
    last = big.contiguous(memory_format=torch.channels_last)
    for feature in (big[:, 1:4, 2:9, 1:13:2], last[:, 1:4, 2:9], big[:1, :3].expand(2, 3, 12, 15)):
        args = ([feature], ROIS.float(), None, [0.5], (2, 2), 2, True)
        close(*(run(*args) for run in kernels("roi_align")))


@runs
def test_rois_without_a_place_are_zeros_and_get_no_gradient():
    nan, inf = float("nan"), float("inf")
    rois = torch.tensor(
        [
            [0, nan, 0, 5, 5],
            [0, 0, 0, inf, 5],
            [0, -inf, 0, inf, 5],
            [nan, 0, 0, 5, 5],
            [-1, 0, 0, 5, 5],
            [2, 0, 0, 5, 5],
            [1e9, 0, 0, 5, 5],
            [0, -3e38, 0, 3e38, 5],
            [0, 0, 0, 5, 5],
        ],
        device=DEVICE,
    )
    levels = torch.tensor([0] * 8 + [2], device=DEVICE)
    features = pyramid(torch.float32)
    for ratio in (0, 2):
        pooled = _triton.KERNELS["roi_align"](features, rois, levels, [1, 0.5], (2, 2), ratio, True)
        assert torch.equal(pooled, torch.zeros_like(pooled))
        grads = _triton.KERNELS["roi_align_backward"](
            torch.ones_like(pooled), rois, levels, [1, 0.5], ratio, True, 2, SIZES, False
        )
        assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


HUGE = torch.tensor(
    [[0, -300, -200, 700, 900], [1, -4e6, -3e6, 5e6, 2e6], [0, 4, -1e5, 6, 1e5]],
    dtype=torch.float64,
    device=DEVICE,
)


@runs
def test_adaptive_sampling_of_huge_boxes_ends():
    features = [pyramid()[0][..., :2, :3]]
    args = (HUGE, None, [0.5])
    got, wanted = (run(features, *args, (2, 1), 0, True) for run in kernels("roi_align"))
    assert torch.allclose(got, wanted, rtol=1e-8, atol=0)
    rest = (0, True, 2, [(2, 3)], False)
    (got,), (wanted,) = (
        run(torch.ones_like(got), *args, *rest) for run in kernels("roi_align_backward")
    )
    assert torch.allclose(got, wanted, rtol=1e-8, atol=0)


@runs
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_backward_is_the_transpose_of_the_forward(aligned, sampling_ratio):
    features = pyramid()
    pooled = reference.roi_align(
        features[1].cpu().numpy(), ROIS.cpu().numpy(), (3, 2), 0.5, sampling_ratio, aligned
    )
    grad = torch.randn(pooled.shape, dtype=torch.float64, device=DEVICE)
    run, _ = kernels("roi_align_backward")
    (back,) = run(grad, ROIS, None, [0.5], sampling_ratio, aligned, 2, SIZES[1:], False)
    expected = (torch.from_numpy(pooled).to(DEVICE) * grad).sum()
    assert torch.allclose((back * features[1]).sum(), expected, atol=1e-12)


@runs
@pytest.mark.parametrize(
    ("dtype", "last"), [(d, d != torch.float16) for d in FLOATS] + [(torch.float32, False)]
)
def test_backward_of_a_pyramid(dtype, last):
    grad = torch.randn(len(ROIS), 3, 2, 2, device=DEVICE).to(dtype)
    args = (grad, ROIS.to(wide(dtype)), LEVELS, [0.5, 0.25], 2, True, 2, SIZES, last)
    run, check = kernels("roi_align_backward")
    for a, b in zip(run(*args), check(*args), strict=True):
        close(a, b)
        assert a.stride() == b.stride()


@runs
def test_backward_of_many_rois_and_an_expanded_gradient():
    """More RoIs than a program looks at together, more channels and pixels than it has."""
    rois = torch.rand(270, 5, device=DEVICE) * 2
    rois[:, 0] = 0
    rois[10:260, 1:] -= 100  # so that nothing of the second block touches the map
    rois[:, 3:] += 1
    grad = torch.ones((), device=DEVICE).expand(270, 260, 1, 1)
    args = (grad, rois, None, [1.0], 1, True, 1, [(1, 9)], False)
    run, check = kernels("roi_align_backward")
    (got,) = run(*args)
    close(got, check(*args)[0])
    assert torch.equal(got, run(*args)[0])


@runs
def test_nothing_to_pool():
    features = pyramid(torch.float32)
    forward, backward = _triton.KERNELS["roi_align"], _triton.KERNELS["roi_align_backward"]
    none = torch.zeros(0, 5, device=DEVICE)
    assert forward(features[:1], none, None, [1.0], (2, 3), 2, True).shape == (0, 3, 2, 3)
    empty = features[0][:, :0]
    assert forward([empty], ROIS.float(), None, [1.0], (2, 3), 2, True).shape == (7, 0, 2, 3)
    grad = torch.zeros(0, 3, 2, 2, device=DEVICE)
    (got,) = backward(grad, none, None, [1.0], 2, True, 1, [(2, 3)], True)
    assert torch.equal(got, torch.zeros(1, 3, 2, 3, device=DEVICE))
    (got,) = backward(grad, none, None, [1.0], 2, True, 0, [(2, 3)], False)
    assert got.shape == (0, 3, 2, 3)


@runs
def test_gradcheck_through_the_public_op():
    feature = torch.randn(1, 1, 2, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    rois = torch.tensor([[0, 0.6, 0.3, 2.1, 1.4]], dtype=torch.float64, device=DEVICE)
    with ops.use_backend("triton"):
        assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, rois, (1, 2), 1.0, 1), feature)


# --- NMS ------------------------------------------------------------------------------------------


def random_boxes(n, size):
    corner = torch.rand(n, 2, dtype=torch.float64, device=DEVICE) * size
    return torch.cat([corner, corner + torch.rand_like(corner) * size], dim=1)


def nms(boxes, scores, groups, threshold):
    order, keep = _triton.KERNELS["nms"](boxes, scores, groups, threshold)
    assert keep.dtype == torch.bool
    assert torch.equal(order, scores.sort(descending=True, stable=True).indices)
    return order[keep].tolist()


@runs
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 150])
@pytest.mark.parametrize("size", [10.0, 100.0])
def test_nms_keeps_what_the_loop_keeps(n, size):
    boxes = random_boxes(n, size).float()
    scores = torch.randint(0, 8, (n,), device=DEVICE) / 8  # with ties
    wanted = reference.nms(boxes.double().cpu().numpy(), scores.cpu().numpy(), 0.4)
    assert nms(boxes, scores, None, 0.4) == wanted


@runs
def test_nms_in_groups():
    boxes, scores = random_boxes(140, 20.0), torch.rand(140, device=DEVICE)
    groups = torch.arange(140, device=DEVICE) % 3 - (1 << 40)
    _, check = kernels("nms")
    order, keep = check(boxes, scores, groups, 0.3)
    assert nms(boxes, scores, groups, 0.3) == order[keep].tolist()


@runs
def test_nms_of_a_chain():
    """Each box drops the next, if it stays: every second one does, across blocks."""
    x = torch.arange(140, device=DEVICE) * 1.0
    boxes = torch.stack([x, 0 * x, x + 3, 0 * x + 1], dim=1)
    assert nms(boxes, -x, None, 0.4) == list(range(0, 140, 2))


@runs
def test_nms_at_the_threshold_and_without_area():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]], device=DEVICE)  # IoU exactly 0.5
    scores = torch.tensor([0.9, 0.8], device=DEVICE)
    assert nms(boxes, scores, None, 0.5) == [0, 1]
    assert nms(boxes, scores, None, 0.499) == [0]
    assert nms(boxes.half(), scores, None, 0.5) == [0, 1]
    points = torch.tensor([[3.0, 3, 3, 3]] * 2, device=DEVICE)
    assert nms(points, scores, None, 0.0) == [0, 1]
    # Above 0.1, but not above 0.1 rounded to float32.
    near = torch.tensor([[0, 0, 1, 1], [0, 0, 0.1000000005, 1]], dtype=torch.float64, device=DEVICE)
    assert nms(near, scores, None, 0.1) == [0]


# --- focal loss -----------------------------------------------------------------------------------


def focal(x, target, alpha, gamma):
    """The formula in float64, differentiable."""
    x, target = x.double(), target.double()
    p = x.sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, target, reduction="none")
    loss = entropy * (p * (1 - target) + (-x).sigmoid() * target) ** gamma
    return loss * (alpha * target + (1 - alpha) * (1 - target)) if alpha >= 0 else loss


@runs
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 0.0), (0.5, 1.0), (0.3, 1.5)])
def test_focal_loss_and_its_gradient(dtype, alpha, gamma):
    x = (torch.randn(3, 700, device=DEVICE) * 4).to(dtype)
    target = (torch.rand(3, 700, device=DEVICE) > 0.7).to(dtype)
    target[0] = 0.3  # also between the two
    close(
        _triton.KERNELS["sigmoid_focal_loss"](x, target, alpha, gamma),
        focal(x, target, alpha, gamma).to(dtype),
    )
    grad = torch.randn(3, 700, device=DEVICE).to(dtype)
    leaf = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(focal(leaf, target, alpha, gamma), leaf, grad.double())
    args = (x, target, alpha, gamma)
    close(_triton.KERNELS["sigmoid_focal_loss_backward"](grad, *args), wanted.to(dtype))


@runs
def test_focal_loss_of_large_logits():
    x = torch.tensor([-1e4, -200.0, -20.0, 20.0, 200.0, 1e4], device=DEVICE)
    backward = _triton.KERNELS["sigmoid_focal_loss_backward"]
    for gamma in (0.0, 0.5, 2.0):
        for target in (torch.zeros_like(x), torch.ones_like(x)):
            got = _triton.KERNELS["sigmoid_focal_loss"](x, target, -1.0, gamma)
            wanted = focal(x, target, -1.0, gamma)
            assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-30)
            slope = backward(torch.ones((), device=DEVICE).expand(6), x, target, -1.0, gamma)
            assert slope.isfinite().all()
    # Far on the target's side: log(1 + e^-20) has not been rounded to 0.
    ones = torch.ones_like(x)
    got = _triton.KERNELS["sigmoid_focal_loss"](x, ones, -1.0, 0.0)
    assert got[3].item() == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-5)


@runs
def test_focal_loss_of_layouts_and_expanded_gradients():
    x = torch.randn(2, 3, 4, 6, device=DEVICE)
    target = (torch.rand_like(x) > 0.5).float()
    for logits in (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2]):
        t = target[..., : logits.shape[3]]
        loss = _triton.KERNELS["sigmoid_focal_loss"](logits, t, 0.25, 2.0)
        close(loss, focal(logits, t, 0.25, 2.0).float())
        assert loss.stride() == torch.empty_like(logits).stride()
        one, many = torch.full((), 2.0, device=DEVICE), torch.full(logits.shape, 2.0, device=DEVICE)
        got = [
            _triton.KERNELS["sigmoid_focal_loss_backward"](g, logits, t, 0.25, 2.0)
            for g in (one.expand(logits.shape), many)
        ]
        assert torch.equal(*got)
    assert _triton.KERNELS["sigmoid_focal_loss"](x[:0], x[:0], 0.25, 2.0).shape == (0, 3, 4, 6)
