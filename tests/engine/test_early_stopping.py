"""When a training ends, against a counter that is kept by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from instseg.engine.checkpoint import Best
from instseg.engine.early_stopping import EarlyStopping

from .tiny import make_options, make_trainer


def scored(value: float, epoch: int) -> Best:
    return Best(metric="segm/AP", value=value, step=10 * epoch, epoch=epoch)


def end_of(stopping: EarlyStopping, scores: list[float], eval_every: int) -> int | None:
    """The epoch after which a training with these scores ends; None if it does not."""
    mark = None
    for number, value in enumerate(scores, start=1):
        epoch = number * eval_every
        mark = stopping.mark(mark, scored(value, epoch))
        if stopping.is_over(mark, epoch=epoch, eval_every=eval_every):
            return epoch
        for later in range(epoch + 1, epoch + eval_every):  # epochs without an evaluation
            assert not stopping.is_over(mark, epoch=later, eval_every=eval_every)
    return None


@pytest.mark.parametrize("eval_every", [1, 3])
def test_hand_worked_cases(eval_every: int) -> None:
    two = EarlyStopping(patience=2)
    assert end_of(two, [0.1, 0.2, 0.3, 0.4], eval_every) is None
    assert end_of(two, [0.1, 0.3, 0.3, 0.2, 0.9], eval_every) == 4 * eval_every  # equal is no rise
    assert end_of(two, [0.3, 0.2, 0.4, 0.2, 0.1], eval_every) == 5 * eval_every
    assert end_of(two, [math.nan, 0.1, math.nan, 0.2], eval_every) is None
    assert end_of(two, [math.nan, math.nan, 0.1], eval_every) == 2 * eval_every
    assert end_of(EarlyStopping(1), [0.1, math.inf, 0.2], eval_every) == 2 * eval_every


def test_small_rises_do_not_count_until_they_add_up() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert end_of(stopping, [0.5, 0.55, 0.6, 0.9], 1) == 3
    assert end_of(stopping, [0.5, 0.55, 0.65, 0.7, 0.7], 1) == 5
    assert end_of(EarlyStopping(patience=2), [0.5, 0.55, 0.6, 0.9], 1) is None


def by_counting(scores: list[float], patience: int, min_delta: float) -> int | None:
    """The usual counter."""
    mark, bad = -math.inf, 0
    for number, value in enumerate(scores, start=1):
        if value > mark + min_delta:
            mark, bad = value, 0
        else:
            bad += 1
        if bad == patience:
            return number
    return None


def test_against_a_counter() -> None:
    draw = random.Random(0)
    for _ in range(300):
        scores = [draw.random() + 0.02 * i for i in range(20)]
        patience, delta = draw.randint(1, 6), draw.choice([0.0, 0.05, 0.3])
        stopping = EarlyStopping(patience, delta)
        assert end_of(stopping, scores, 1) == by_counting(scores, patience, delta)


def test_the_last_epoch_out_of_turn_does_not_end_it_earlier() -> None:
    """Epochs 3 and 6 are evaluated, 7 as the last one: two evaluations since epoch 0 at most."""
    stopping = EarlyStopping(patience=3)
    assert not stopping.is_over(scored(0.1, 3), epoch=7, eval_every=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "patience must be at least 1, got 0"),
        ((1, -0.1), "min_delta must be finite and not negative, got -0.1"),
        ((1, math.nan), "min_delta must be finite"),
    ],
)
def test_senseless_settings(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStopping(*arguments)  # type: ignore[arg-type]


def test_early_stopping_ends_a_training_that_gets_no_better(tmp_path: Path) -> None:
    """Scores rise twice and then fall: with a patience of 2 the fourth evaluation is the last."""
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9, 0.9, 0.9, 0.9])

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        return {"segm": {"AP": next(scores)}}

    changes: dict[str, Any] = {"options": make_options(eval_every=1), "evaluate": evaluate}
    stopping = EarlyStopping(patience=2)
    result = make_trainer(tmp_path, early_stopping=stopping, **changes).run()
    assert (result.status, result.epoch) == ("finished", 4)
    assert result.best is not None
    assert result.best.value == 0.3
    assert (tmp_path / "final.safetensors").exists()
    again = make_trainer(tmp_path, early_stopping=stopping, **changes).run(resume=True)
    assert (again.status, again.epoch) == ("finished", 4)
