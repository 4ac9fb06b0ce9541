"""A weights file is enough to have the model, its transforms and its classes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instseg.config.build_model import build_model
from instseg.config.loader import ConfigError
from instseg.config.schema import InferenceConfig, InitConfig
from instseg.config.schema_backbone import TimmConfig
from instseg.config.schema_data import ResizeShortestEdgeConfig
from instseg.config.schema_model import (
    BoxHeadConfig,
    FcBodyConfig,
    FcnMaskHeadConfig,
    FpnConfig,
    MaskRcnnConfig,
)
from instseg.config.trained import check_state_dict, describe_weights, load_initial, load_trained
from instseg.engine.errors import CheckpointError
from instseg.engine.weights import METADATA_KEY, save_weights
from instseg.structures import Instances

CATEGORIES = [{"id": 4, "name": "cat", "supercategory": "animal"}, {"id": 9, "name": "dog"}]
CONFIG = InferenceConfig(
    model=MaskRcnnConfig(
        name="mask_rcnn",
        backbone=TimmConfig(name="timm", model="test_resnet", weights=Path("gone.pth")),
        neck=FpnConfig(channels=16),
        box_head=BoxHeadConfig(body=FcBodyConfig(name="fc", channels=32)),
        mask_head=FcnMaskHeadConfig(name="fcn", channels=[16]),
    ),
    transforms=[ResizeShortestEdgeConfig(name="resize_shortest_edge", sizes=[50], max_size=80)],
)


def make_model(seed: int = 0, classes: int = 2, config: InferenceConfig = CONFIG) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config.model, num_classes=classes, load_backbone=False)


def save(path: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    about = describe_weights(CONFIG, CATEGORIES) | changes
    save_weights(path, tensors, {METADATA_KEY: json.dumps(about)})
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "w.safetensors", make_model().state_dict())


def test_the_model_comes_back(weights: Path) -> None:
    """Without the files that its training began with."""
    trained = load_trained(weights)
    expected = make_model().state_dict()
    own = trained.model.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in expected)
    assert not any(module.training for module in trained.model.modules())
    assert trained.categories == [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert trained.class_names == ["cat", "dog"]
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    resized, _ = trained.transforms(image, Instances.empty((100, 120)))
    assert resized.shape == (3, 50, 60)


def test_another_configuration_may_be_given(weights: Path) -> None:
    other = CONFIG.model_copy(update={"transforms": []})
    assert len(load_trained(weights, other).transforms.transforms) == 0
    wider = CONFIG.model.model_copy(update={"neck": FpnConfig(channels=24)})
    with pytest.raises(CheckpointError, match=r"neck\.lateral\.0\.0\.weight is \[16, 32, 1, 1\]"):
        load_trained(weights, CONFIG.model_copy(update={"model": wider}))


def test_the_stored_configuration_is_checked(tmp_path: Path) -> None:
    text = str(describe_weights(CONFIG, [])["inference"]).replace("channels: 16", "channels: many")
    path = save(tmp_path / "w.safetensors", {}, inference=text)
    with pytest.raises(
        ConfigError, match=r"w\.safetensors:\d+: model\.neck\.channels: expected an"
    ):
        load_trained(path)


# --- starting a training ------------------------------------------------------------------------


def test_all_layers_are_taken(weights: Path) -> None:
    model = make_model(seed=1)
    load_initial(model, InitConfig(weights=weights), ["cat", "dog"])
    expected = make_model().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("names", [["dog", "cat"], ["cat"], ["cat", "dog", "cow"]])
def test_other_classes_are_refused(weights: Path, names: list[str]) -> None:
    model = make_model(seed=1, classes=len(names))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_initial(model, InitConfig(weights=weights), names)
    assert f"{weights} was trained for 2 classes (cat, dog)" in str(caught.value)
    assert f"the data has {len(names)} ({', '.join(names)})" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_all_but_the_class_layers_are_taken(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(seed=1, classes=5)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_initial(model, InitConfig(weights=weights, heads=False), list("abcde"))
    expected = make_model().state_dict()
    new = {
        f"{layer}.{part}"
        for layer in (
            "box_head.predictor.cls_score",
            "box_head.predictor.bbox_pred",
            "mask_head.predictor.logits",
        )
        for part in ("weight", "bias")
    }
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key in new else expected[key]), key
    assert all(key in caplog.text for key in new)


# --- state dicts that differ --------------------------------------------------------------------


def test_equal_state_dicts_pass() -> None:
    check_state_dict({"a": torch.zeros(2)}, {"a": torch.ones(2)}, "file")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "file does not fit the model: a is missing in the file"),
        ({"a": [2], "b": [1]}, "file does not fit the model: b is not in the model"),
        ({"a": [3]}, "file does not fit the model: a is [3] in the file and [2] in the model"),
        (
            {"a": [2]} | {f"x{i}": [1] for i in range(8)},
            "x4 is not in the model; and 3 more",
        ),
    ],
)
def test_differences_are_named(given: dict[str, list[int]], message: str) -> None:
    tensors = {key: torch.zeros(shape) for key, shape in given.items()}
    with pytest.raises(CheckpointError) as caught:
        check_state_dict({"a": torch.zeros(2)}, tensors, "file")
    assert message in str(caught.value)


def test_another_number_of_classes_is_said_so(tmp_path: Path) -> None:
    path = save(tmp_path / "w.safetensors", make_model(classes=3).state_dict())
    with pytest.raises(CheckpointError, match="it is for another number of classes; box_head"):
        load_trained(path)
