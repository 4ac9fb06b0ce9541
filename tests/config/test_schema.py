"""The schema: what it refuses by itself, and that every configuration in the repository fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from instseg.config.loader import ConfigError, dump_config, load_config, parse_config
from instseg.config.schema import Config, InferenceConfig
from instseg.config.schema_backbone import ResNetConfig
from instseg.config.schema_model import AnchorsConfig, MaskRcnnConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

MINIMAL = """\
model: {name: mask_rcnn, backbone: {name: timm, model: test_resnet}}
data:
  train: {format: coco, annotations: a.json, images: images}
  val: {format: coco, annotations: b.json, images: images}
train: {epochs: 1, optimizer: {name: sgd, lr: 0.02}}
"""


def load(text: str, *overrides: str, tmp_path: Path) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, Config, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_configuration_of_the_repository(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ANNOTATIONS", "IMAGES"):
        monkeypatch.setenv(variable, "somewhere")
    config = load_config(path, Config)
    assert parse_config(dump_config(config), Config, source="copy") == config
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = "train_net.py", "make demo", "instseg demo", "python -m benchmarks."
    assert any(command in line for command in commands for line in header), "no command"


def test_there_are_configurations() -> None:
    assert {path.parent.name for path in CONFIGS} >= {"demo", "pennfudan"}


def test_the_smallest_configuration(tmp_path: Path) -> None:
    config = load(MINIMAL, tmp_path=tmp_path)
    assert isinstance(config.model, MaskRcnnConfig)
    # The published R-CNN settings (He et al., 2017) are the defaults.
    assert config.model.neck.channels == 256
    assert config.model.anchors.sizes == [[32], [64], [128], [256], [512]]
    assert config.model.rpn.train_after_nms == 2000
    assert config.model.box_head.samples == 512
    assert config.model.mask_head.channels == [256] * 4
    assert config.train.schedule.warmup_steps == 500
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.seed=9223372036854775808", "train.seed: should be less than 9223372036854775808"),
        ("train.seed=-1", "train.seed: should be greater than or equal to 0"),
        ("train.optimizer.lr=.nan", "train.optimizer.lr: should be a finite number"),
        ("train.optimizer.lr=0", "train.optimizer.lr: should be greater than 0"),
        ("train.optimizer={name: adamw, lr: 1, betas: [0.9, 1.0]}", "betas.1: should be less than"),
        ("train.optimizer={name: adamw, lr: 1, betas: [0.9]}", "expected 2 items, got 1"),
        ("train.optimizer={name: adam, lr: 1}", "unknown name 'adam'; did you mean 'adamw'?"),
        ("train.schedule={name: multi_step, milestones: [0.9, 0.5]}", "milestones must rise"),
        ("train.schedule={name: multi_step, milestones: [0.5, 1.5]}", "milestones.1: should be le"),
        ("train.schedule={name: multi_step, gamma: 2}", "gamma: should be less than or equal to 1"),
        ("train.amp=fp8", "train.amp: expected 'bf16' or 'fp16', got 'fp8'"),
        ("train.ema_decay=1.0", "train.ema_decay: should be less than 1"),
        ("train.accumulate=0", "train.accumulate: should be greater than 0"),
        ("model.backbone.strides=[4, 16]", "each twice the one before, got [4, 16]"),
        ("model.backbone.strides=[3, 6]", "strides must be powers of two"),
        ("model.backbone.strides=[]", "model.backbone.strides: expected at least 1 items, got 0"),
        ("model.anchors.sizes=[[8], []]", "model.anchors.sizes.1: expected at least 1 items"),
        ("model.anchors.sizes=[[8], [9, 10]]", "every level of sizes needs the same number"),
        ("model.anchors.aspect_ratios=[]", "aspect_ratios: expected at least 1 items"),
        ("model.rpn.negative_iou=0.8", "negative_iou 0.8 is over positive_iou 0.7"),
        ("model.image_std=[1, 1]", "model.image_mean and model.image_std need a value for each"),
        ("model.image_std=[1, 1, 0]", "model.image_std.2: should be greater than 0"),
        ("model={name: faster_rcnn, mask_head: {name: fcn}}", "unknown key 'mask_head' in model"),
        ("data.on_error=ignore", "data.on_error: expected 'raise' or 'skip', got 'ignore'"),
        ("data.train.fold={folds: 1, part: val}", "data.train.fold.folds: should be greater"),
        ("data.train.fold={folds: 5, index: 5, part: val}", "index must be in 0..4, got 5"),
        ("data.train={format: coca}", "unknown format 'coca'; did you mean 'coco'?"),
        ("data.train={format: via, file: a, images: b}", "give either attribute or category"),
        (
            "data.train_transforms=[{name: large_scale_jitter, height: 9, width: 9, min_scale: 3}]",
            "min_scale 3.0 is over max_scale 2.0",
        ),
        (
            "data.val_transforms=[{name: resize_shortest_edge, sizes: [64, 72], max_size: 96}]",
            "val_transforms: resize_shortest_edge would draw one of its sizes",
        ),
        ("data.val_transforms=[{name: horizontal_flip}]", "unknown name 'horizontal_flip'"),
        (
            "data.val_transforms=[{name: letterbox, sizes: [[64, 64], [32, 32]]}]",
            "val_transforms: letterbox would draw one of its sizes for each image; give one size",
        ),
        (
            "data.val_transforms=[{name: resize, sizes: [[64, 64], [32, 32]]}]",
            "val_transforms: resize would draw one of its sizes",
        ),
        ("data.val_transforms=[{name: letterbox}]", "give either height and width, or sizes"),
        (
            "data.val_transforms=[{name: resize, height: 4, width: 4, sizes: [[4, 4]]}]",
            "give either height and width, or sizes",
        ),
        ("data.val_transforms=[{name: resize, height: 4}]", "give either height and width, or"),
        ("data.val_transforms=[{name: letterbox, sizes: []}]", "sizes: expected at least 1 items"),
        ("data.val_transforms=[{name: letterbox, sizes: [[4]]}]", "expected 2 items, got 1"),
        ("data.val_transforms=[{name: letterbox, sizes: [[4, 0]]}]", "should be greater than 0"),
        ("data.val_transforms=[{name: expand}]", "unknown name 'expand'"),
        ("data.train_transforms=[{name: expand, max_scale: 0.5}]", "greater than or equal to 1"),
        ("data.train_transforms=[{name: iou_crop, min_scale: 0}]", "should be greater than 0"),
        ("data.train_transforms=[{name: iou_crop, min_ious: [2]}]", "less than or equal to 1"),
        ("data.train_transforms=[{name: hsv_jitter, hue: 91}]", "less than or equal to 90"),
        ("data.mosaic={height: 9}", "missing key 'width' in data.mosaic"),
        ("data.mosaic={height: 9, width: 9, p: 2}", "data.mosaic.p: should be less than"),
        ("data.mosaic={height: 9, width: 9, min_scale: 3}", "min_scale 3.0 is over max_scale 2.0"),
        ("data.mixup={max_scale: 0.25}", "min_scale 0.5 is over max_scale 0.25"),
        ("data.mixup={height: 9}", "unknown key 'height' in data.mixup"),
        ("data.plain_epochs=-1", "data.plain_epochs: should be greater than or equal to 0"),
        ("data.plain_epochs=1", "plain_epochs are without mosaic and mixup, and there is neither"),
        ("evaluation.iou_types=[]", "evaluation.iou_types: expected at least 1 items"),
        ("evaluation.iou_types=[box]", "did you mean 'bbox'?"),
    ],
)
def test_values_that_cannot_be(setting: str, message: str, tmp_path: Path) -> None:
    load(MINIMAL, tmp_path=tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL, setting, tmp_path=tmp_path)
    assert str(caught.value).startswith("command line: ") or str(caught.value).startswith(
        str(tmp_path)
    )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "ok"),
    [
        ({}, False),
        ({"norm": "live"}, False),
        ({"freeze_at": 0}, False),
        ({"norm": "live", "freeze_at": 0}, True),
        ({"weights": "torchvision"}, True),
        ({"weights": "file.pth", "freeze_at": 5}, True),
    ],
)
def test_frozen_parts_need_weights(options: dict[str, Any], ok: bool) -> None:
    given = {"name": "resnet", "depth": 18, **options}
    if ok:
        ResNetConfig.model_validate(given)
    else:
        with pytest.raises(ValidationError, match="without weights a frozen backbone stays random"):
            ResNetConfig.model_validate(given)


def test_what_weights_carry_loads_back() -> None:
    model = MaskRcnnConfig(
        name="mask_rcnn",
        backbone=ResNetConfig(name="resnet", weights=Path("${HOME}/r50.pth")),
        anchors=AnchorsConfig(sizes=[[8, 10.5]] * 5),
    )
    config = InferenceConfig(model=model)
    assert parse_config(dump_config(config), InferenceConfig, source="copy") == config


def test_what_weights_carry_draws_no_size() -> None:
    model = {"name": "yolov2"}
    resize = {"name": "resize", "sizes": [[64, 64], [32, 32]]}
    with pytest.raises(ValidationError, match=r"resize would draw one of its sizes.*give one size"):
        InferenceConfig.model_validate({"model": model, "transforms": [resize]})
    shortest = {"name": "resize_shortest_edge", "sizes": [64], "max_size": 96}
    given = {"model": model, "transforms": [shortest, resize | {"sizes": [[64, 64]]}]}
    assert len(InferenceConfig.model_validate(given).transforms) == 2
