"""One update of the weights, against updates written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from instseg.engine.update import Gradient, Updater

from .tiny import TinyBatch, make_batch


class MeanModel(nn.Module):
    """A mean over images: the squared distance of a weight from each image's mean value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        self.calls += 1
        values = torch.stack([image.float().mean() / 255 for image in images])
        distances = (self.weight[None] - values[:, None]).square().sum(1)
        return {"near": distances.mean(), "small": 0.5 * self.weight.square().sum()}


def gradient_by_hand(weight: Tensor, ids: list[int]) -> Tensor:
    """d/dw of mean_i sum_k (w_k - v_i)^2 + |w|^2 / 2."""
    values = torch.stack([make_batch([i]).images[0].float().mean() / 255 for i in ids])
    return 2 * (weight - values.mean()) + weight


def gradient_of(updater: Updater, batches: list[TinyBatch]) -> Gradient:
    return updater.compute_gradient(dict(enumerate(batches)), [len(b) for b in batches], step=0)


def make_updater(model: nn.Module, lr: float = 0.1, **changes: Any) -> Updater:
    settings: dict[str, Any] = {"amp": None, "clip_norm": None, "ema_decay": None}
    return Updater(model, SGD(model.parameters(), lr=lr), **settings | changes)


@pytest.mark.parametrize("split", [[4], [2, 2], [3, 1], [1, 1, 1, 1]])
def test_batches_of_a_step_act_as_one(split: list[int]) -> None:
    ids = iter([5, 2, 8, 1])
    batches = [make_batch([next(ids) for _ in range(size)]) for size in split]
    model = MeanModel()
    start = model.weight.detach().clone()
    expected = gradient_by_hand(start, [5, 2, 8, 1])
    updater = make_updater(model)
    gradient = gradient_of(updater, batches)
    assert gradient.norm == pytest.approx(float(expected.norm()), rel=1e-5)
    assert gradient.means["small"] == pytest.approx(0.5 * (1 + 4))
    assert gradient.means["loss"] == pytest.approx(gradient.means["near"] + 2.5)
    updater.apply()
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * expected)


def test_a_second_step_starts_from_a_zero_gradient() -> None:
    model = MeanModel()
    updater = make_updater(model)
    for ids in ([1, 2], [3, 4]):
        start = model.weight.detach().clone()
        gradient_of(updater, [make_batch(ids)])
        updater.apply()
        expected = start - 0.1 * gradient_by_hand(start, ids)
        torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping(limit: float) -> None:
    model = MeanModel()
    start = model.weight.detach().clone()
    expected = gradient_by_hand(start, [1, 2])
    norm = float(expected.norm())
    updater = make_updater(model, clip_norm=limit)
    assert gradient_of(updater, [make_batch([1, 2])]).norm == pytest.approx(norm)
    updater.apply()
    expected = expected * min(1.0, limit / norm)
    torch.testing.assert_close(model.weight.detach(), start - 0.1 * expected)


def test_ema_of_weights_and_buffers() -> None:
    model = MeanModel()
    updater = make_updater(model, ema_decay=0.75)
    average: Tensor | None = None
    for ids in ([1], [2], [3]):
        gradient_of(updater, [make_batch(ids)])
        updater.apply()
        weight = model.weight.detach().clone()
        average = weight if average is None else 0.75 * average + 0.25 * weight
    assert average is not None
    averaged = updater.averaged_model()
    assert isinstance(averaged, MeanModel)
    assert averaged is not model
    torch.testing.assert_close(averaged.weight.detach(), average)
    # Calls 1, 2, 3: 1, then 1.25, then 0.75 * 1.25 + 0.25 * 3.
    assert float(averaged.calls) == pytest.approx(1.6875)


def test_without_ema_the_model_itself_is_evaluated() -> None:
    model = MeanModel()
    assert make_updater(model).averaged_model() is model


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp_runs_the_forward_pass_in_half(amp: Any, dtype: torch.dtype) -> None:
    seen = []

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
            y = self.layer(torch.stack([image.float().mean((1, 2)) / 255 for image in images]))
            seen.append(y.dtype)
            return {"fit": y.float().square().mean()}

    torch.manual_seed(1)
    model = Linear()
    exact = gradient_of(make_updater(model), [make_batch([1, 2, 3])])
    half = gradient_of(make_updater(model, amp=amp), [make_batch([1, 2, 3])])
    assert seen == [torch.float32, dtype]
    assert half.norm == pytest.approx(exact.norm, rel=0.05)  # unscaled before it is measured


# --- what must not pass -------------------------------------------------------------------------


class HookedModel(MeanModel):
    """The loss is fine, its gradient is not."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight.register_hook(lambda gradient: gradient * factor)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite(factor: float) -> None:
    gradient = gradient_of(make_updater(HookedModel(factor)), [make_batch([1])])
    assert not math.isfinite(gradient.norm)
    assert math.isfinite(gradient.means["loss"])


@pytest.mark.parametrize("lower", [True, False])
def test_a_discarded_step_changes_the_loss_scale_or_nothing(lower: bool) -> None:
    model = HookedModel(math.inf)
    start = model.weight.detach().clone()
    updater = make_updater(model, amp="fp16")
    scales = []
    for _ in range(3):
        gradient_of(updater, [make_batch([1])])
        scales.append(updater.scaler.get_scale())
        updater.discard(lower_scale=lower)
    assert torch.equal(model.weight.detach(), start)
    assert scales == ([65536.0, 32768.0, 16384.0] if lower else [65536.0] * 3)


def test_the_bad_batch_of_a_step_is_told() -> None:
    class Sometimes(MeanModel):
        def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
            losses = super().forward(images, targets)
            return losses if len(images) == 2 else losses | {"near": losses["near"] * math.nan}

    batches = [make_batch([1, 2]), make_batch([3])]
    gradient = gradient_of(make_updater(Sometimes()), batches)
    assert math.isfinite(gradient.losses[0]["near"])
    assert math.isnan(gradient.losses[1]["near"])


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ([], TypeError, "must return a dict of losses, got list"),
        ({}, TypeError, "must return a dict of losses"),
        ({"a": 1.0}, TypeError, "loss 'a' must be a scalar tensor, got float"),
        ({"a": torch.ones(2)}, TypeError, r"loss 'a' must be a scalar tensor, got \[2\]"),
        ({"loss": torch.ones(())}, ValueError, "may not be named 'loss'"),
    ],
)
def test_models_that_break_the_contract(losses: Any, error: Any, message: str) -> None:
    class Broken(MeanModel):
        def forward(self, images: list[Tensor], targets: Any) -> Any:
            return losses

    with pytest.raises(error, match=message):
        gradient_of(make_updater(Broken()), [make_batch([1])])


def test_an_optimizer_of_another_model_is_refused() -> None:
    other = SGD(MeanModel().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="1 parameters of optimizer group 0 are not the model's"):
        Updater(MeanModel(), other, amp=None, clip_norm=None, ema_decay=None)
