"""The ``model`` section of one-stage detectors: each setting reaches its part."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from instseg.config.build_model import build_model
from instseg.config.schema_one_stage import OneStageConfig, SqueezeDetConfig, YoloxConfig
from instseg.models.detection.one_stage import OneStageDetector


def built(config: Any) -> OneStageDetector:
    model = build_model(config, num_classes=3, load_backbone=False)
    assert isinstance(model, OneStageDetector)
    return model


def test_settings_of_every_head() -> None:
    own = built(SqueezeDetConfig(name="squeezedet")).head
    limits = {"score_threshold": 0.125, "nms_threshold": 0.0, "max_detections": 7}
    given = built(SqueezeDetConfig(name="squeezedet", **limits)).head
    assert {name: getattr(given, name) for name in limits} == limits
    assert not any(getattr(own, name) == value for name, value in limits.items())


@pytest.mark.parametrize("multi_label", [False, True])
def test_multi_label_of_yolox(multi_label: bool) -> None:
    assert built(YoloxConfig(name="yolox", multi_label=multi_label)).head.multi_label is multi_label


def test_colours_take_the_place_of_the_models_own() -> None:
    """The size and the grey of the padding stay."""
    own = built(YoloxConfig(name="yolox", input_size=64)).preprocess
    assert own.mean.flatten().tolist() == [0, 0, 0]
    config = YoloxConfig(
        name="yolox", input_size=64, image_mean=[0.25, 0.5, 0.75], image_std=[0.25, 0.5, 0.5]
    )
    given = built(config).preprocess
    assert given.mean.flatten().tolist() == [0.25, 0.5, 0.75]
    assert given.std.flatten().tolist() == [0.25, 0.5, 0.5]
    assert (
        (given.min_size, given.size_divisor) == (own.min_size, own.size_divisor) == ((64, 64), 32)
    )
    grey = 114 / 255
    assert given.border is not None
    assert given.border.tolist() == pytest.approx(
        [(grey - 0.25) / 0.25, (grey - 0.5) / 0.5, (grey - 0.75) / 0.5]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_mean": [0.5] * 3}, "image_mean is set without image_std: give both, or neither"),
        ({"image_std": [0.5] * 3}, "image_std is set without image_mean: give both, or neither"),
    ],
)
def test_mean_and_deviation_go_together(given: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OneStageConfig.model_validate(given)
