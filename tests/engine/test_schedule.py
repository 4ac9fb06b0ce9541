"""Schedules against values worked by hand."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from instseg.engine.schedule import Cosine, MultiStep, linear_warmup


def test_warmup_is_a_straight_line() -> None:
    # From 0.2 to 1 in 4 steps: 0.2 a step.
    values = [linear_warmup(step, 4, 0.2) for step in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert linear_warmup(0, 0, 0.001) == 1.0


def test_multi_step() -> None:
    schedule = MultiStep((6, 8), gamma=0.1, warmup_steps=2, warmup_factor=0.5)
    expected = [0.5, 0.75, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [schedule(step) for step in range(10)] == pytest.approx(expected)


def test_multi_step_milestone_within_the_warmup() -> None:
    schedule = MultiStep((1,), gamma=0.1, warmup_steps=2, warmup_factor=0.0)
    assert [schedule(step) for step in range(3)] == pytest.approx([0.0, 0.05, 0.1])


def test_cosine() -> None:
    # cos at 0, 60, 90, 120, 180 degrees is 1, 1/2, 0, -1/2, -1; (1 + cos) / 2 of them:
    schedule = Cosine(14, warmup_steps=2, warmup_factor=0.0)
    steps = {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.75, 8: 0.5, 10: 0.25, 14: 0.0, 20: 0.0}
    assert {step: schedule(step) for step in steps} == pytest.approx(steps)


def test_cosine_down_to_a_final_factor() -> None:
    schedule = Cosine(4, final_factor=0.2)
    assert [schedule(step) for step in (0, 2, 4, 5)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_serves_lambda_lr() -> None:
    schedule = MultiStep((2,), gamma=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=4.0)
    scheduler = LambdaLR(optimizer, schedule)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [4.0, 4.0, 2.0, 2.0]


def test_repr_tells_every_setting() -> None:
    assert repr(MultiStep((5,))) == (
        "MultiStep(milestones=(5,), gamma=0.1, warmup_steps=0, warmup_factor=0.001)"
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiStep((8, 6)), "milestones must rise"),
        (lambda: MultiStep((6, 6)), "milestones must rise"),
        (lambda: MultiStep((6,), gamma=0), "gamma must be in"),
        (lambda: MultiStep((6,), warmup_steps=-1), "warmup_steps must not be negative"),
        (lambda: Cosine(10, warmup_factor=2), "warmup_factor must be in"),
        (lambda: Cosine(10, warmup_steps=10), "leaves nothing after 10 steps"),
        (lambda: Cosine(10, final_factor=-1), "final_factor must be in"),
    ],
)
def test_bad_values(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
