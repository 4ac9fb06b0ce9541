"""Sampling, rates, freezing and stopping: from their keys to objects that do it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch import nn

from instseg.config import build
from instseg.config.loader import ConfigError, dump_config, load_config, parse_config
from instseg.config.schema import Config
from instseg.data.index import CocoIndex, build_index
from instseg.engine.early_stopping import EarlyStopping
from instseg.engine.optim import describe_groups

TEXT = """\
model: {name: faster_rcnn, backbone: {name: timm, model: test_resnet, norm: live}}
data:
  train: {format: coco, annotations: a.json, images: images}
  val: {format: coco, annotations: b.json, images: images}
  batch_size: 2
  workers: 0
train:
  epochs: 4
  optimizer: {name: sgd, lr: 0.02}
  schedule: {name: cosine, warmup_steps: 0}
"""


def load(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    return load_config(path, Config, overrides)


class Net(nn.Module):
    """A backbone of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
        self.head = nn.Conv2d(4, 1, 1)


def trained(model: nn.Module) -> set[str]:
    return {n.removesuffix(".weight") for n, p in model.named_parameters() if p.requires_grad} - {
        n for n, _ in model.named_parameters() if n.endswith("bias")
    }


# --- samplers -----------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    """Eight images: seven of class 3, the last also of class 8; one of a crowd alone; one empty."""
    (tmp_path / "images").mkdir()
    for i in range(10):
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), noise)
    objects = [(i, 3, 0) for i in range(8)] + [(7, 8, 0), (8, 8, 1)]
    coco: dict[str, Any] = {
        "categories": [{"id": 3, "name": "a"}, {"id": 8, "name": "b"}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 20, "width": 20} for i in range(10)
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": c, "bbox": [1, 1, 5, 5], "area": 25}
            | {"iscrowd": crowd, "segmentation": {"counts": [0, 400], "size": [20, 20]}}
            for n, (image, c, crowd) in enumerate(objects, start=1)
        ],
    }
    return build_index(coco, tmp_path / "images", source="a.json", need_masks=False)


def epoch_counts(config: Config, index: CocoIndex, epoch: int) -> Counter[int]:
    loader = build.build_train_loader(config, index)
    return Counter(i for batch in loader.epoch(epoch) for i in batch.image_ids)


def test_samplers(tmp_path: Path, index: CocoIndex) -> None:
    assert set(epoch_counts(load(tmp_path), index, 0)) == set(range(10))
    key = "data.sampling="
    kept = load(tmp_path, key + "{name: shuffle, keep_empty: false}")
    assert epoch_counts(kept, index, 0) == Counter(range(8))

    # Class b is in 1 of 8 images: sqrt(0.5 / (1 / 8)) = 2.
    repeat = load(tmp_path, key + "{name: repeat_factor, threshold: 0.5, keep_empty: false}")
    assert epoch_counts(repeat, index, 1) == Counter(range(8)) + Counter([7])
    # With the empty ones in 1 of 10: sqrt(5), of which 2 in every epoch.
    repeat = load(tmp_path, key + "{name: repeat_factor, threshold: 0.5}")
    counts = [epoch_counts(repeat, index, epoch) for epoch in range(3)]
    assert all(c[7] in (2, 3) and c[8] == c[9] == 1 for c in counts)

    # Four rounds over both classes; b has the one image.
    aware = epoch_counts(load(tmp_path, key + "{name: class_aware}"), index, 0)
    assert aware.total() == 8
    assert aware[7] in (4, 5)  # as an image of class a too
    assert aware[8] == aware[9] == 0
    # Three rounds over classes a, b and none: 10 images.
    with_empty = load(tmp_path, key + "{name: class_aware, keep_empty: true}")
    aware = epoch_counts(with_empty, index, 0)
    assert (aware.total(), aware[8] + aware[9]) == (9, 3)


def test_augmentation_of_repeated_images_differs(tmp_path: Path, index: CocoIndex) -> None:
    config = load(
        tmp_path,
        "data.sampling={name: class_aware}",
        "data.train_transforms=[{name: large_scale_jitter, height: 20, width: 20}]",
    )
    loader = build.build_train_loader(config, index)
    images = [
        batch.images[i].numpy().tobytes()
        for batch in loader.epoch(0)
        for i, image_id in enumerate(batch.image_ids)
        if image_id == 7
    ]
    assert len(images) >= 4
    assert len(set(images)) == len(images)


def test_sampling_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sampling.*threshold"):
        load(tmp_path, "data.sampling={name: repeat_factor, threshold: 2}")
    with pytest.raises(ConfigError, match="class_aware"):
        load(tmp_path, "data.sampling={name: classaware}")


# --- rates --------------------------------------------------------------------------------------


def test_rates_of_layers_and_patterns(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "train.optimizer={name: sgd, lr: 0.02, layer_decay: 0.5, lr_factors: {head.*: 3}}",
    )
    assert parse_config(dump_config(config), Config, source="copy") == config
    optimizer = build.build_optimizer(config, Net(), replicas=2)
    lines = describe_groups(optimizer).splitlines()
    assert [line.split(":")[0] + line.split(" values")[1] for line in lines[::2]] == [
        "head.*, decay, lr 0.12, weight decay 0.0001",
        "layer 1 of 2 (backbone.2), decay, lr 0.02, weight decay 0.0001",
        "layer 0 of 2 (backbone.0), decay, lr 0.01, weight decay 0.0001",
    ]
    config = load(tmp_path, "train.optimizer.lr_factors={heads: 3}")
    with pytest.raises(ConfigError, match=r"train\.optimizer: 'heads' matches no .* near .* head"):
        build.build_optimizer(config, Net())


def test_the_rate_follows_the_replicas(tmp_path: Path) -> None:
    config = load(tmp_path, "train.accumulate=3")
    assert build.build_lr_scaling(config, 2).describe() == (
        "learning rate 0.02 x 2 (linear rule for SGD, 2 replicas, 12 images a step)"
    )
    assert build.build_optimizer(config, Net(), replicas=2).param_groups[0]["lr"] == 0.04
    assert build.build_optimizer(config, Net()).param_groups[0]["lr"] == 0.02
    config = load(tmp_path, "train.lr_scaling=none")
    assert build.build_optimizer(config, Net(), replicas=2).param_groups[0]["lr"] == 0.02
    adamw = load(tmp_path, "train.optimizer={name: adamw, lr: 0.01}")
    assert build.build_lr_scaling(adamw, 4).scaled_lr == 0.02


def test_a_schedule_counts_steps_of_all_replicas(tmp_path: Path) -> None:
    """13 batches, 2 x 2 for each step, are 4 steps an epoch."""
    schedule = build.build_schedule(load(tmp_path, "train.accumulate=2"), 13, replicas=2)
    assert schedule == build.build_schedule(load(tmp_path), 4)


# --- strategies ---------------------------------------------------------------------------------


def test_full_training_freezes_nothing(tmp_path: Path) -> None:
    assert build.build_freeze(load(tmp_path), Net()) is None


def test_feature_extraction(tmp_path: Path) -> None:
    config, model = load(tmp_path, "train.strategy=feature_extraction"), Net()
    freeze = build.build_freeze(config, model)
    optimizer = build.build_optimizer(config, model, freeze)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert trained(model) == {"head"}


def test_fine_tuning(tmp_path: Path) -> None:
    config, model = load(tmp_path, "train.strategy=fine_tuning"), Net()
    freeze = build.build_freeze(config, model)
    assert freeze is not None
    optimizer = build.build_optimizer(config, model, freeze)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]
    by_epoch = []
    for epoch in range(4):
        freeze.apply(model, epoch)
        by_epoch.append(trained(model))
    last = {"head", "backbone.2"}
    assert by_epoch == [{"head"}, last, last | {"backbone.0"}, last | {"backbone.0"}]


def test_an_explicit_plan(tmp_path: Path) -> None:
    plan = 'train.freeze=[{modules: ["backbone.*"], until_epoch: 2}, {modules: [backbone.0]}]'
    config, model = load(tmp_path, plan), Net()
    assert parse_config(dump_config(config), Config, source="copy") == config
    freeze = build.build_freeze(config, model)
    assert freeze is not None
    optimizer = build.build_optimizer(config, model, freeze)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    freeze.apply(model, 1)
    assert trained(model) == {"head"}
    freeze.apply(model, 2)
    assert trained(model) == {"head", "backbone.2"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.freeze=[{modules: [backbon]}]", r"train\.freeze: 'backbon' .* backbone"),
        ('train.freeze=[{modules: ["*"]}]', r"train\.freeze: the first epoch would have nothing"),
    ],
)
def test_plans_that_do_not_fit_the_model(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build.build_freeze(load(tmp_path, override), Net())


def test_a_strategy_needs_a_backbone(tmp_path: Path) -> None:
    config = load(tmp_path, "train.strategy=fine_tuning")
    with pytest.raises(ConfigError, match=r"train\.strategy: the model has no part named backbone"):
        build.build_freeze(config, nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.strategy=fine_tuning", "train.freeze=[{modules: [head]}]"],
            "leave out either strategy or freeze",
        ),
        (["train.strategy=fine_tuning", "train.epochs=1"], "fine_tuning needs 2 epochs"),
        (["train.freeze=[{modules: []}]"], "modules"),
        (["train.freeze=[{modules: [head], until_epoch: 0}]"], "until_epoch"),
        (["train.early_stopping={patience: 0}"], "patience"),
        (["train.early_stopping={}"], "patience"),
        (["train.optimizer.layer_decay=1.5"], "layer_decay"),
        (["train.optimizer.lr_factors={head: 0}"], "lr_factors"),
        (["train.lr_scaling=cubic"], "lr_scaling"),
        (["train.replicas=0"], "replicas"),
    ],
)
def test_settings_are_checked(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)


def test_early_stopping(tmp_path: Path) -> None:
    assert build.build_early_stopping(load(tmp_path)) is None
    config = load(tmp_path, "train.early_stopping={patience: 5, min_delta: 0.01}")
    assert build.build_early_stopping(config) == EarlyStopping(5, 0.01)
