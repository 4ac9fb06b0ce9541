"""Which steps are taken, left out, or the last."""

from __future__ import annotations

import math
from typing import Any

import pytest

from instseg.engine.nonfinite_policy import MAX_OVERFLOWS, NonFinitePolicy, Verdict

GOOD: Any = ([{"loss": 1.0, "fit": 1.0}], 2.0)
BAD_LOSS: Any = ([GOOD[0][0], {"loss": math.nan, "fit": math.inf}], math.nan)
BAD_GRADIENT: Any = (GOOD[0], math.inf)


def test_a_finite_step_is_taken() -> None:
    for kind in ("stop", "skip"):
        assert NonFinitePolicy(kind).judge(*GOOD) == Verdict("take", "", False)  # type: ignore[arg-type]


@pytest.mark.parametrize("scaled", [False, True])
def test_stop_at_a_loss(scaled: bool) -> None:
    verdict = NonFinitePolicy("stop", scaled=scaled).judge(*BAD_LOSS)
    assert verdict == Verdict("stop", "loss is nan, fit is inf", is_fault=True)


def test_stop_at_a_gradient() -> None:
    verdict = NonFinitePolicy("stop").judge(*BAD_GRADIENT)
    assert verdict == Verdict("stop", "the gradient's norm is inf", is_fault=True)


@pytest.mark.parametrize("fault", [BAD_LOSS, BAD_GRADIENT])
def test_skip_until_patience_is_out(fault: Any) -> None:
    policy = NonFinitePolicy("skip", patience=3)
    steps = [fault, fault, GOOD, fault, fault, fault]
    verdicts = [policy.judge(*step) for step in steps]
    assert [v.action for v in verdicts] == ["skip", "skip", "take", "skip", "skip", "stop"]
    assert [v.is_fault for v in verdicts] == [True, True, False, True, True, True]
    assert verdicts[-1].problem.endswith("; 3 steps in a row")


@pytest.mark.parametrize("kind", ["stop", "skip", "lower_scale"])
def test_fp16_finds_its_scale_under_every_policy(kind: Any) -> None:
    policy = NonFinitePolicy(kind, patience=1, scaled=True)
    for _ in range(MAX_OVERFLOWS - 1):
        assert policy.judge(*BAD_GRADIENT) == Verdict(
            "lower_scale", "the gradient's norm is inf", is_fault=False
        )
    last = policy.judge(*BAD_GRADIENT)
    assert (last.action, last.is_fault) == ("stop", True)
    assert last.problem.endswith(f"fp16 overflowed in {MAX_OVERFLOWS} steps in a row")


def test_lower_scale_takes_losses_as_overflows() -> None:
    policy = NonFinitePolicy("lower_scale", scaled=True)
    steps = [BAD_LOSS, BAD_GRADIENT, GOOD] + [BAD_LOSS] * MAX_OVERFLOWS
    verdicts = [policy.judge(*step) for step in steps]
    assert [v.action for v in verdicts[:3]] == ["lower_scale", "lower_scale", "take"]
    assert [v.is_fault for v in verdicts[:3]] == [True, False, False]
    assert {v.action for v in verdicts[3:-1]} == {"lower_scale"}
    assert verdicts[-1].action == "stop"


def test_skip_with_fp16_skips_losses_alone() -> None:
    policy = NonFinitePolicy("skip", scaled=True)
    assert policy.judge(*BAD_LOSS).action == "skip"
    assert policy.judge(*BAD_GRADIENT).action == "lower_scale"


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="'lower_scale' needs amp 'fp16'"):
        NonFinitePolicy("lower_scale")
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        NonFinitePolicy("skip", patience=0)
