"""What every loss of semantic maps owes: finite numbers, ignored pixels, dtypes, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from instseg.losses.segmentation import LOSSES, lovasz_hinge, lovasz_softmax
from tests.losses.segmentation_cases import CASES, ONE_MODE, Batch, some

BY_MAPS = ("boundary", "hausdorff")  # their distances depend on where pixels are

every_loss = pytest.mark.parametrize(("name", "mode"), CASES)


def value_and_gradient(name: str, mode: str, batch: Batch, **options) -> tuple[Tensor, Tensor]:
    logits = batch.logits.clone().requires_grad_()
    loss = batch._replace(logits=logits).loss(LOSSES[name], mode, **options)
    loss.backward()
    return loss.detach(), logits.grad


def masks(mode: str, fill: int | None) -> Tensor:
    """Both images of one class or label; None: one image of each."""
    shape = (2, 4, 5) if mode == "multiclass" else (2, 3, 4, 5)
    target = torch.full(shape, fill or 0, dtype=torch.uint8)
    if fill is None:
        target[1] = 1
    return target


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extremes_are_finite(name, mode, dtype):
    """Perfect, worst and mixed logits of empty, full and mixed masks."""
    for fill, size in itertools.product((0, 1, None), (0.0, 50.0, 1e4)):
        target = masks(mode, fill)
        classes = [target == c for c in range(3)]
        sign = 2.0 * (torch.stack(classes, 1) if mode == "multiclass" else target > 0) - 1
        mixed = torch.where(torch.rand(2, 3, 4, 5) < 0.5, -1, 1)
        for logits in (size * sign, -size * sign, size * mixed):
            loss, gradient = value_and_gradient(name, mode, Batch(logits.to(dtype), target))
            assert loss.dtype == torch.float32
            assert gradient.dtype == dtype
            assert loss.isfinite()
            assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_but_ignored_pixels_is_zero(name, mode, weighted):
    batch = some(mode, ignored=1.1, weighted=weighted)
    loss, gradient = value_and_gradient(name, mode, batch)
    assert loss == 0
    assert not gradient.any()


@every_loss
def test_weights_of_zero_are_zero(name, mode):
    batch = some(mode)
    for zero in ({"pixel_weights": torch.zeros(2, 4, 5)}, {"class_weights": torch.zeros(3)}):
        loss, gradient = value_and_gradient(name, mode, batch._replace(**zero))
        if name == "exp_log" and "class_weights" in zero:
            continue  # its Dice term takes no class weights
        assert loss == 0
        assert not gradient.any()


@every_loss
def test_ignored_pixels_count_nowhere(name, mode):
    batch = some(mode)
    ignored = batch.target == 255
    where = ignored[:, None].expand_as(batch.logits) if mode == "multiclass" else ignored
    loss, gradient = value_and_gradient(name, mode, batch)
    assert not gradient[where].any()
    assert gradient[~where].any()
    if name != "hausdorff":  # whose prediction's boundary is everywhere
        other = batch._replace(logits=batch.logits.masked_fill(where, -7.0))
        torch.testing.assert_close(other.loss(LOSSES[name], mode), loss)


@every_loss
def test_ignore_index(name, mode):
    batch = some(mode)
    target = batch.target.where(batch.target != 255, -1)
    other = batch._replace(target=target).loss(LOSSES[name], mode, ignore_index=-1)
    assert torch.equal(other, batch.loss(LOSSES[name], mode))


@pytest.mark.parametrize(
    ("name", "mode"), [case for case in CASES if case[0] not in (*BY_MAPS, "topk")]
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_pixel_of_weight_two_counts_as_two(name, mode, batched):
    """And one of weight 0 as none."""
    takes_batch = "batch" in LOSSES[name].__kwdefaults__
    options = {"batch": batched} if takes_batch else {}
    batch = some(mode)
    counts = torch.tensor([0, 1, 2, 1, 3])
    weights = counts.float().expand(2, 4, 5)
    repeated = Batch(
        batch.logits.repeat_interleave(counts, dim=-1),
        batch.target.repeat_interleave(counts, dim=-1),
        batch.class_weights,
    )
    torch.testing.assert_close(
        batch._replace(pixel_weights=weights).loss(LOSSES[name], mode, **options),
        repeated.loss(LOSSES[name], mode, **options),
    )


@every_loss
def test_class_weights_are_relative(name, mode):
    batch = some(mode)
    other = batch._replace(class_weights=batch.class_weights * 8)
    options = {"smooth": 0.0} if name == "generalized_dice" else {}
    torch.testing.assert_close(
        other.loss(LOSSES[name], mode, **options), batch.loss(LOSSES[name], mode, **options)
    )


@every_loss
def test_dtypes_of_targets(name, mode):
    batch = some(mode)
    expected = batch.loss(LOSSES[name], mode)
    for dtype in (torch.uint8, torch.int32, torch.int16):
        other = batch._replace(target=batch.target.to(dtype))
        assert torch.equal(other.loss(LOSSES[name], mode), expected)


@every_loss
def test_half_precision_is_computed_in_float32(name, mode):
    """Under autocast too."""
    batch = some(mode)
    half = batch._replace(logits=batch.logits.bfloat16())
    expected = batch._replace(logits=batch.logits.bfloat16().float()).loss(LOSSES[name], mode)
    with torch.autocast("cpu", torch.bfloat16):
        losses = (
            half.loss(LOSSES[name], mode),
            half._replace(logits=half.logits.float()).loss(LOSSES[name], mode),
        )
    for loss in losses:
        assert torch.equal(loss, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_loss
def test_the_gpu_agrees(name, mode):
    batch = some(mode)
    on_gpu = Batch(*(tensor.cuda() for tensor in batch))
    loss, gradient = value_and_gradient(name, mode, batch)
    theirs, their_gradient = value_and_gradient(name, mode, on_gpu)
    torch.testing.assert_close(theirs.cpu(), loss)
    torch.testing.assert_close(their_gradient.cpu(), gradient)


@every_loss
def test_gradients_are_those_of_differences(name, mode):
    batch = some(mode, seed=3)
    logits = batch.logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: batch._replace(logits=x).loss(LOSSES[name], mode), [logits]
    )


@every_loss
def test_gradient_steps_find_the_truth(name, mode):
    """Training the logits themselves; Lovasz and TopK move few pixels at a time."""
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[0, 2:6, 3:7] = 1
    target = target if mode == "multiclass" else target[:, None]
    channels = 2 if mode == "multiclass" else 1
    logits = (0.1 * torch.randn(1, channels, 8, 8)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        LOSSES[name](logits, target, mode=mode).backward()
        optimizer.step()
    found = logits.argmax(1) if mode == "multiclass" else logits > 0
    if name == "boundary":  # which is 0 on the outermost pixels of objects: they may be either
        core = torch.zeros(8, 8, dtype=torch.bool)
        core[3:5, 4:6] = True
        rim = (target.squeeze() == 1) & ~core
        assert torch.equal(found.squeeze()[~rim].long(), target.squeeze()[~rim].long())
    else:
        assert torch.equal(found.long(), target.long())


BAD_INPUT = [
    ({"logits": torch.zeros(3, 4, 5)}, r"logits must be floating \[B, C, H, W\]"),
    ({"logits": torch.zeros(2, 3, 4, 5).long()}, "logits must be floating"),
    ({"logits": torch.zeros(2, 3, 4, 6)}, r"target must be integers .* crop or resize"),
    ({"target": torch.zeros(2, 1, 4, 5).long()}, "target must be integers"),
    ({"target": torch.zeros(2, 4, 5)}, "target must be integers"),
    ({"class_weights": torch.ones(2)}, r"class_weights must be floating \[C\] = \[3\]"),
    ({"class_weights": torch.tensor([1.0, -1, 1])}, "class_weights must be finite .* got -1"),
    ({"pixel_weights": torch.ones(2, 5, 4)}, r"pixel_weights must be .* = \[2, 4, 5\]"),
    ({"pixel_weights": torch.ones(2, 4, 5).long()}, r"pixel_weights must be .*int64"),
    ({"pixel_weights": torch.full((2, 4, 5), torch.nan)}, "pixel_weights must be finite"),
]


@every_loss
def test_bad_input(name, mode):
    for change, message in BAD_INPUT:
        with pytest.raises(ValueError, match=message):
            some(mode)._replace(**change).loss(LOSSES[name], mode)


@every_loss
def test_unknown_classes(name, mode):
    batch = some(mode)
    batch.target.view(-1)[3:5] = torch.tensor([3, 7])
    top = 2 if mode == "multiclass" else 1
    with pytest.raises(ValueError, match=rf"target holds \[3, 7\], valid are 0 to {top} and .*255"):
        batch.loss(LOSSES[name], mode)


@pytest.mark.parametrize("name", list(LOSSES))
def test_modes(name):
    batch = some("multiclass")
    with pytest.raises(
        ValueError, match="mode must be one of multiclass, multilabel, got 'binary'"
    ):
        batch.loss(LOSSES[name], "binary")
    single = Batch(torch.zeros(2, 1, 4, 5), torch.zeros(2, 4, 5).long())
    if name not in ONE_MODE:
        with pytest.raises(ValueError, match="use mode 'multilabel' for a binary map"):
            single.loss(LOSSES[name], "multiclass")


@pytest.mark.parametrize(
    ("loss", "mode", "instead"),
    [
        (LOSSES["cross_entropy"], "multilabel", "bce"),
        (LOSSES["bce"], "multiclass", "cross_entropy"),
        (lovasz_hinge, "multiclass", "lovasz_softmax"),
        (lovasz_softmax, "multilabel", "lovasz_hinge"),
    ],
)
def test_losses_of_one_mode(loss, mode, instead):
    with pytest.raises(ValueError, match=f"only, got '{mode}': use {instead}$"):
        some(mode).loss(loss, mode)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bce", {"positive_weight": -1}, "positive_weight must be at least 0, got -1"),
        ("focal", {"gamma": -0.5}, "gamma must be at least 0"),
        ("focal", {"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ("topk", {"fraction": 0}, r"fraction must be in \(0, 1\], got 0"),
        ("topk", {"fraction": 1.5}, r"fraction must be in \(0, 1\], got 1.5"),
        ("dice", {"smooth": -1}, "smooth must be at least 0, got -1"),
        ("generalized_dice", {"smooth": float("nan")}, "smooth must be at least 0, got nan"),
        ("dice", {"include_background": False}, "include_background=False is of mode"),
        ("hausdorff", {"include_background": False}, "include_background=False is of mode"),
        ("tversky", {"alpha": -0.1}, "alpha must be at least 0"),
        ("focal_tversky", {"beta": -0.1}, "beta must be at least 0"),
        ("focal_tversky", {"gamma": 0}, "gamma must be above 0"),
        ("sensitivity_specificity", {"sensitivity_weight": 2}, "sensitivity_weight must be in"),
        ("hausdorff", {"alpha": -1}, "alpha must be at least 0"),
        ("bce_log_dice", {"smooth": 0}, "smooth must be above 0"),
        ("exp_log", {"smooth": 0}, "smooth must be above 0"),
        ("exp_log", {"gamma": 0}, "gamma must be above 0"),
        ("exp_log", {"dice_weight": -1}, "dice_weight must be at least 0"),
        ("exp_log", {"entropy_weight": -1}, "entropy_weight must be at least 0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        some("multilabel").loss(LOSSES[name], "multilabel", **options)


def test_alpha_of_focal_is_of_binary_maps():
    with pytest.raises(ValueError, match=r"alpha .* class_weights"):
        some("multiclass").loss(LOSSES["focal"], "multiclass", alpha=0.25)
