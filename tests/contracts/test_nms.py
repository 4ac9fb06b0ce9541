"""What every backend of non-maximum suppression must do."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from instseg import ops
from tests.contracts import reference

pytestmark = pytest.mark.usefixtures("backend")
# The backend stays the same for all examples of a test.
one_backend = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_boxes(n: int, seed: int, size: float = 60.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size], dim=1)


def random_scores(n: int, seed: int, values: int) -> Tensor:
    """Few distinct values make ties, which must fall as in a stable sort."""
    return torch.randint(0, values, (n,), generator=torch.Generator().manual_seed(seed)) / values


@one_backend
@given(st.integers(0, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_keeps_what_the_loop_keeps(n, seed, threshold):
    boxes, scores = random_boxes(n, seed), random_scores(n, seed, 8)
    wanted = reference.nms(boxes.double().numpy(), scores.numpy(), threshold)
    assert ops.nms(boxes, scores, threshold).tolist() == wanted


@one_backend
@given(st.integers(1, 60), st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_keeps_a_maximal_set(n, seed, threshold):
    """No kept box overlaps another kept one; every dropped one overlaps a better kept one."""
    boxes, scores = random_boxes(n, seed, 30.0), random_scores(n, seed, 1000)
    kept = ops.nms(boxes, scores, threshold)
    iou = ops.box_iou(boxes, boxes)
    among = iou[kept][:, kept].fill_diagonal_(0)
    assert (among <= threshold + 1e-6).all()
    for i in set(range(n)) - set(kept.tolist()):
        better = kept[scores[kept] >= scores[i]]
        assert (iou[i, better] > threshold - 1e-6).any()


@pytest.mark.parametrize("count", [63, 64, 65, 200])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.7])
def test_equals_torchvision(count, threshold):
    for size in (5.0, 60.0, 1000.0):
        boxes, scores = random_boxes(count, count, size), random_scores(count, 1, 1 << 20)
        wanted = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(ops.nms(boxes, scores, threshold), wanted)


def test_many_boxes_equal_torchvision(backend):
    if backend == "triton":
        pytest.skip("too many for Triton's interpreter")
    for count, size in ((3000, 800.0), (3000, 60.0)):
        boxes, scores = random_boxes(count, 3, size), random_scores(count, 3, 1 << 20)
        for threshold in (0.1, 0.5, 0.7):
            wanted = torchvision.ops.nms(boxes, scores, threshold)
            assert torch.equal(ops.nms(boxes, scores, threshold), wanted)


def test_of_wide_ranges_of_size():
    """Boxes of 0.1 to 10^5 px together."""
    generator = torch.Generator().manual_seed(0)
    side = 10 ** (torch.rand(150, 2, generator=generator) * 6 - 1)
    corner = torch.randn(150, 2, generator=generator) * side
    boxes, scores = torch.cat([corner, corner + side], dim=1), random_scores(150, 5, 1 << 20)
    assert torch.equal(ops.nms(boxes, scores, 0.3), torchvision.ops.nms(boxes, scores, 0.3))


def test_at_the_threshold_keeps_both():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU exactly 0.5
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.499).tolist() == [0]


def test_chains_of_suppression():
    """Each box overlaps its neighbours: every second one stays."""
    left = torch.arange(130.0)[:, None] * 2
    boxes = torch.cat([left, left * 0, left + 4, left * 0 + 1], dim=1)  # IoU 1/3 with the next
    scores = torch.arange(130, 0, -1) / 200
    assert ops.nms(boxes, scores, 0.3).tolist() == list(range(0, 130, 2))


def test_extreme_boxes():
    boxes = torch.tensor(
        [
            [0.0, 0, 1e20, 1e20],  # its area is infinite in float32
            [0, 0, 1e20, 1e20],
            [-1e9, -1e9, 1e9, 1e9],
            [5, 5, 5, 5],
            [5, 5, 5, 5],
            [9, 9, 3, 3],  # upside down
            [9, 9, 3, 3],
            [-1e9, -1e9, 1e9, 1e9],
        ]
    )
    scores = torch.arange(8, 0, -1) / 8
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_signs_of_scores_and_of_zero():
    boxes = random_boxes(6, 0) + torch.arange(6)[:, None] * 200
    scores = torch.tensor([-1.0, 0.0, -0.0, 3e38, -3e38, 1e-42])
    assert ops.nms(boxes, scores, 0.5).tolist() == [3, 5, 1, 2, 0, 4]


def test_batched_is_nms_in_each_group():
    boxes, groups = random_boxes(120, 4), torch.arange(120) % 3 * 10**12 - 5
    scores = torch.rand(120, generator=torch.Generator().manual_seed(4))
    kept = ops.batched_nms(boxes, scores, groups, 0.4)
    wanted = [
        i
        for g in groups.unique()
        for i in (groups == g).nonzero()[:, 0][
            ops.nms(boxes[groups == g], scores[groups == g], 0.4)
        ]
    ]
    assert sorted(kept.tolist()) == sorted(int(i) for i in wanted)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    boxes, scores = random_boxes(40, 6).to(dtype), random_scores(40, 6, 64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = reference.nms(boxes.to(wide).numpy(), scores.to(wide).numpy(), 0.45)
    assert ops.nms(boxes, scores, 0.45).tolist() == wanted


def test_double_is_not_rounded():
    """Scores, and overlaps, that are the same number in float32."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5 + 1e-10]], dtype=torch.float64)
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert ops.nms(boxes, scores, 0.5).tolist() == [1]


def test_views_and_no_boxes():
    boxes, scores = random_boxes(50, 7), random_scores(50, 7, 1000)
    wide = torch.cat([boxes, boxes], dim=1)[:, ::1][:, 4:]
    assert torch.equal(ops.nms(wide, scores, 0.3), ops.nms(boxes, scores, 0.3))
    assert torch.equal(
        ops.nms(boxes[::2], scores[::2], 0.3),
        ops.nms(boxes[::2].contiguous(), scores[::2].contiguous(), 0.3),
    )
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(ops.nms(boxes[:0], scores[:0], 0.3), none)
    assert torch.equal(ops.batched_nms(boxes[:0], scores[:0], none, 0.3), none)


def test_registration():
    boxes, scores = random_boxes(20, 8), random_scores(20, 8, 100)
    op = torch.ops.instseg.nms.default
    torch.library.opcheck(op, (boxes, scores, None, 0.5))
    torch.library.opcheck(op, (boxes, scores, torch.arange(20) % 2, 0.5))


def test_mask_compiles_and_exports_without_breaks():
    class Keep(torch.nn.Module):
        def forward(self, boxes, scores):
            order, keep = ops.nms_mask(boxes * 2, scores, None, 0.5)
            return order, keep & (scores[order] > 0.1)

    arguments = (random_boxes(30, 9), random_scores(30, 9, 100))
    wanted = Keep()(*arguments)
    compiled = torch.compile(Keep(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Keep(), arguments)
    for got in (compiled(*arguments), exported.module()(*arguments)):
        assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))


def test_refuses_wrong_arguments():
    boxes, scores = torch.zeros(2, 4), torch.zeros(2)
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\], got \[2, 5\]"):
        ops.nms(torch.zeros(2, 5), scores, 0.5)
    with pytest.raises(ValueError, match=r"scores must be \[2\], got \[3\]"):
        ops.nms(boxes, torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"groups must be \[2\], got \[1\]"):
        ops.batched_nms(boxes, scores, torch.zeros(1, dtype=torch.int64), 0.5)
    with pytest.raises(TypeError, match=r"groups must be int64, got torch\.float32"):
        ops.batched_nms(boxes, scores, torch.zeros(2), 0.5)
    with pytest.raises(TypeError, match="boxes must be a floating tensor"):
        ops.nms(boxes.long(), scores, 0.5)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(
            ValueError, match=rf"iou_threshold must be in \[0, 1\], got {threshold}"
        ):
            ops.nms(boxes, scores, threshold)
    with pytest.raises(ValueError, match="scores must be on the device of boxes, cpu, got meta"):
        ops.nms(boxes, torch.zeros(2, device="meta"), 0.5)


def test_refuses_what_is_not_finite():
    boxes, scores = random_boxes(4, 1), torch.rand(4)
    bad = scores.clone()
    bad[2] = float("nan")
    with pytest.raises(ValueError, match="scores must be finite, row 2 is nan"):
        ops.nms(boxes, bad, 0.5)
    boxes[1, 3] = float("inf")
    with pytest.raises(ValueError, match="boxes must be finite, row 1 is"):
        ops.nms(boxes, scores, 0.5)
