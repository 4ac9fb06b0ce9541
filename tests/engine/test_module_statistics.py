"""Statistics against numpy, and modules built so that it is known where values go wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instseg.engine.module_statistics import Examination, Statistics, examine
from instseg.engine.rng import seed_everything

from .tiny import TinyModel, make_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_statistics_of_a_tensor(dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    values = tensor.double().numpy()
    good = values[np.isfinite(values)]
    found = Statistics.of(tensor)
    assert (found.elements, found.nan, found.infinite, found.bad) == (20, 1, 2, 3)
    assert (found.minimum, found.maximum) == (good.min(), good.max())
    assert found.mean == pytest.approx(good.mean())
    assert found.norm == pytest.approx(np.linalg.norm(good))


def test_sums_do_not_overflow() -> None:
    found = Statistics.of(torch.full((4,), 60000.0, dtype=torch.float16))
    assert (found.mean, found.norm) == (60000.0, 120000.0)
    assert Statistics.of(torch.full((4,), 3e38)).norm == pytest.approx(6e38)


def test_nothing_finite() -> None:
    found = Statistics.of(torch.full((3,), math.nan))
    assert (found.nan, found.minimum, found.norm) == (3, 0.0, 0.0)
    merged = found.merge(Statistics.of(torch.tensor([2.0, 4.0])))
    assert (merged.elements, merged.nan, merged.minimum, merged.mean) == (5, 3, 2.0, 3.0)


def test_merging_is_as_of_one_tensor() -> None:
    one, other = torch.randn(7), torch.randn(2, 3)
    one[0], other[0, 0] = math.inf, math.nan
    merged = Statistics.of(one).merge(Statistics.of(other))
    whole = Statistics.of(torch.cat([one, other.reshape(-1)]))
    for key, value in whole.model_dump().items():
        assert getattr(merged, key) == pytest.approx(value), key


class Chain(nn.Module):
    """Image means through three layers; ``middle`` decides what goes wrong."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.middle = middle
        self.last = nn.Sequential(nn.Linear(4, 2), nn.ReLU(inplace=True))

    def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        x = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        return {"fit": self.last(self.middle(self.first(x))).square().mean()}


class Apply(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def look(model: nn.Module, **changes: Any) -> Examination:
    settings: dict[str, Any] = {"device": CPU, "amp": None, "scale": 1.0}
    return examine(model.train(), make_batch([1, 2]), **settings | changes)


def test_the_first_output_that_is_not_finite() -> None:
    found = look(Chain(Apply(lambda x: x.exp() * torch.tensor([1.0, 1.0, 1.0, math.inf]))))
    assert found.findings[0] == (
        "forward: first in the output of middle (Apply): 0 NaN and 2 infinite of 8 values"
    )
    names = [record.name for record in found.modules]
    assert names == ["images", "targets", "first", "middle", "last.0", "last.1", "last", ""]
    bad = [m.name for m in found.modules if m.output is not None and m.output.bad]
    assert bad[0] == "middle"
    assert "first" not in bad
    assert not math.isfinite(found.losses["fit"])


def test_the_first_gradient_that_is_not_finite() -> None:
    """d sqrt(x) / dx is infinite at 0, which the forward pass does not show."""
    found = look(Chain(Apply(lambda x: (x * 0).sqrt() + x)))
    assert [f.split(":")[0] for f in found.findings] == ["backward"]
    assert "the gradient of the output of first (Linear): 8 NaN" in found.findings[0]
    gradients = {m.name: m.gradient for m in found.modules}
    assert gradients["middle"] is not None
    assert gradients["middle"].bad == 0
    parameters = {p.name: p.gradient for p in found.parameters}
    assert parameters["first.weight"] is not None
    assert parameters["first.weight"].bad == 12
    assert parameters["last.0.weight"] is not None
    assert parameters["last.0.weight"].bad == 0


class Huge(nn.Module):
    """Its weight's gradient alone leaves the range: a sum over 3e38 + 3e38."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        return {"fit": (self.weight * torch.tensor([3e38, 3e38])).sum()}


def test_a_gradient_of_a_parameter() -> None:
    found = look(Huge())
    assert found.findings == [
        "backward: first in the gradient of weight: 0 NaN and 1 infinite of 1 values"
    ]


def test_weights_and_inputs_that_were_wrong_before() -> None:
    model = Chain(nn.Identity())
    with torch.no_grad():
        model.first.bias[1] = math.nan
    assert look(model).findings[0].startswith("before the step: first.bias: 1 NaN")
    batch = make_batch([1, 2])
    batch.targets[1].boxes[0, 0] = math.nan
    found = examine(Chain(nn.Identity()), batch, device=CPU, amp=None, scale=1.0)
    assert found.findings == ["forward: first in the targets: 1 NaN and 0 infinite of 8 values"]


def test_finite_values_and_equal_losses() -> None:
    """The figures are those of a plain forward and backward pass, and nothing is left behind."""
    model = TinyModel().train()
    seed_everything(5)
    batch = make_batch([1, 2])
    losses = model(batch.images, batch.targets)
    (sum(losses.values()) * 8.0).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    seed_everything(5)
    found = look(model, scale=8.0)
    assert found.findings == []
    assert found.losses["loss_fit"] == losses["loss_fit"].item()
    assert found.losses["loss"] == sum(losses.values()).item()
    for record in found.parameters:
        assert (record.gradient is None) == (record.name not in gradients)
        if record.gradient is not None:
            norm = gradients[record.name].double().norm()
            assert record.gradient.norm == pytest.approx(float(norm))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert {"norm.running_mean", "frozen"} <= {p.name for p in found.parameters}


def test_fp16_overflow_is_found_by_its_scale() -> None:
    """A gradient of 1e4 fits fp16; 2^16 times that does not."""
    model = Chain(Apply(lambda x: x * 1e3))
    small, large = (look(model, amp="fp16", scale=s) for s in (1.0, 2.0**16))
    assert small.findings == []
    assert large.findings[0].startswith("backward: ")
    assert large.losses == small.losses


def test_anomaly_mode_names_the_operation() -> None:
    found = look(Chain(Apply(lambda x: (x * 0).sqrt() + x)), anomaly=True)
    assert found.anomaly is not None
    assert "SqrtBackward0" in found.anomaly
    assert "lambda x" in found.anomaly  # the line of the forward pass
    assert look(Chain(nn.Identity()), anomaly=True).anomaly is None


def test_other_errors_are_not_taken_for_findings() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise RuntimeError("broken by hand")

    model = Chain(Apply(Broken.apply))
    with pytest.raises(RuntimeError, match="broken by hand"):
        look(model)
    assert not any(m._forward_hooks for m in model.modules())
