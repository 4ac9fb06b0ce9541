"""The rate of several replicas, and what the run says about it."""

from __future__ import annotations

from typing import Any

import pytest

from instseg.engine.lr_scaling import LrScaling

TWO: dict[str, Any] = {
    "lr": 0.02,
    "optimizer": "sgd",
    "rule": "auto",
    "replicas": 2,
    "images_per_step": 8,
}


@pytest.mark.parametrize(
    ("changes", "factor", "text"),
    [
        ({}, 2, "learning rate 0.02 x 2 (linear rule for SGD, 2 replicas, 8 images a step)"),
        (
            {"optimizer": "adamw", "replicas": 4, "images_per_step": 16},
            2,
            "learning rate 0.02 x 2 (square root rule for AdamW, 4 replicas, 16 images a step)",
        ),
        (
            {"rule": "sqrt"},
            2**0.5,
            "learning rate 0.02 x 1.414 (square root rule for SGD, 2 replicas, 8 images a step)",
        ),
        (
            {"rule": "linear", "optimizer": "adamw", "replicas": 3},
            3,
            "learning rate 0.02 x 3 (linear rule for AdamW, 3 replicas, 8 images a step)",
        ),
        ({"rule": "none"}, 1, "learning rate 0.02 (not scaled, 2 replicas, 8 images a step)"),
        (
            {"replicas": 1, "images_per_step": 4},
            1,
            "learning rate 0.02 x 1 (linear rule for SGD, 1 replica, 4 images a step)",
        ),
    ],
)
def test_rules(changes: dict[str, Any], factor: float, text: str) -> None:
    scaling = LrScaling(**TWO | changes)
    assert scaling.factor == pytest.approx(factor, rel=1e-15)
    assert scaling.scaled_lr == pytest.approx(0.02 * factor, rel=1e-15)
    assert scaling.describe() == text


def test_one_replica_leaves_the_rate_to_the_bit() -> None:
    for rule in ("auto", "linear", "sqrt", "none"):
        assert LrScaling(**TWO | {"rule": rule, "replicas": 1, "lr": 0.3}).scaled_lr == 0.3


def test_senseless_settings() -> None:
    with pytest.raises(ValueError, match="unknown rule 'cube': choose auto, linear, sqrt or none"):
        LrScaling(**TWO | {"rule": "cube"})
    with pytest.raises(ValueError, match="replicas must be at least 1, got 0"):
        LrScaling(**TWO | {"replicas": 0})
