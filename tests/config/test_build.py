"""From names to objects: each setting reaches the part that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from instseg.config import build
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.config.schema_backbone import ResNetConfig
from instseg.config.schema_model import FasterRcnnConfig, MaskRcnnConfig
from instseg.data.index import CocoIndex, build_index
from instseg.engine.schedule import Cosine, MultiStep
from instseg.models.detection import FasterRCNN, MaskRCNN
from instseg.structures import BitMasks, Instances

TEXT = """\
model: {name: mask_rcnn, backbone: {name: timm, model: test_resnet}}
data:
  train: {format: coco, annotations: a.json, images: images}
  val: {format: coco, annotations: b.json, images: images}
train:
  epochs: 3
  optimizer: {name: sgd, lr: 0.02}
  schedule: {name: cosine, warmup_steps: 0}
"""
NO_MASKS = TEXT.replace("mask_rcnn", "faster_rcnn")


def load(tmp_path: Path, *overrides: str, text: str = TEXT) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, Config, overrides)


def model_of(tmp_path: Path, *overrides: str, text: str = TEXT, classes: int = 3) -> Any:
    return build.build_model(load(tmp_path, *overrides, text=text).model, num_classes=classes)


# --- models -------------------------------------------------------------------------------------


def test_settings_reach_their_parts(tmp_path: Path) -> None:
    model = model_of(
        tmp_path,
        "model.neck={channels: 24, norm: batch}",
        "model.anchors={sizes: [[8, 9], [16, 17], [32, 33], [64, 65], [128, 129]]}",
        "model.image_mean=[0.1, 0.2, 0.3]",
        "model.rpn.depth=2",
        "model.rpn.positive_iou=0.6",
        "model.rpn.samples=33",
        "model.rpn.test_after_nms=44",
        "model.rpn.train_before_nms=55",
        "model.box_head.body={name: conv_fc, conv_channels: [8, 12], channels: 20}",
        "model.box_head.pooled_size=5",
        "model.box_head.positive_iou=0.65",
        "model.box_head.max_detections=7",
        "model.box_head.score_threshold=0.3",
        "model.mask_head={name: fcn, channels: [6, 10], pooled_size: 9, norm: batch}",
    )
    assert isinstance(model, MaskRCNN)
    assert model.preprocess.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.preprocess.size_divisor == 32
    assert model.neck.channels == 24
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.neck.modules())
    assert model.rpn.anchors.num_anchors == 6
    assert not model.rpn.anchors.torchvision
    assert len(model.rpn.head.conv) == 2
    assert (model.rpn.matcher.positive_iou, model.rpn.matcher.negative_iou) == (0.6, 0.3)
    assert model.rpn.matcher.allow_low_quality
    assert model.rpn.sampler.size == 33
    assert model.rpn.training_limits.before_nms == 55
    assert model.rpn.inference_limits.after_nms == 44
    assert model.box_head.body.channels == 20
    assert model.box_head.pooler.output_size == 5
    assert model.box_head.pooler.aligned
    assert model.box_head.pooler.strides == [4, 8, 16, 32]
    matcher = model.box_head.matcher
    assert (matcher.positive_iou, matcher.negative_iou) == (0.65, 0.65)
    assert (model.box_head.max_detections, model.box_head.score_threshold) == (7, 0.3)
    assert model.box_head.predictor.cls_score.out_features == 4
    assert model.mask_head.pooler.output_size == 9
    assert model.mask_head.body.channels == 10
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.mask_head.modules())


def test_torchvisions_conventions(tmp_path: Path) -> None:
    model = model_of(tmp_path, "model.torchvision_compatible=true", text=NO_MASKS)
    assert isinstance(model, FasterRCNN)
    assert not isinstance(model, MaskRCNN)
    assert model.rpn.anchors.torchvision
    assert not model.box_head.pooler.aligned


def test_fewer_levels(tmp_path: Path) -> None:
    sizes = "model.anchors.sizes=[[16], [32], [64]]"
    model = model_of(tmp_path, "model.backbone.strides=[8, 16]", sizes)
    assert model.neck.strides == [8, 16, 32]
    assert model.box_head.pooler.strides == [8, 16]
    with pytest.raises(ConfigError, match=r"has 5 levels, but the neck gives 3 \(strides 8, 16,"):
        model_of(tmp_path, "model.backbone.strides=[8, 16]")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    classifier = resnet18(weights=None)
    path = tmp_path / f"r18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": classifier.state_dict()}, path)
    else:
        save_file(classifier.state_dict(), path)
    section = ResNetConfig(name="resnet", depth=18, weights=path)
    config = MaskRcnnConfig(name="mask_rcnn", backbone=section)
    backbone = build.build_model(config, num_classes=1).backbone
    x = torch.rand(1, 3, 64, 64)
    for own in (classifier, backbone):
        own.eval()
    own, reference = backbone(x)[-1].mean((2, 3)), classifier.avgpool
    with torch.no_grad():
        classifier.fc = nn.Identity()
        assert torch.allclose(own, classifier(x), atol=1e-5), reference
    assert not backbone.conv1.weight.requires_grad

    path.unlink()
    build.build_model(config, num_classes=1, load_backbone=False)


def test_weights_of_another_backbone(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    section = ResNetConfig(name="resnet", depth=34, weights=path)
    config = FasterRcnnConfig(name="faster_rcnn", backbone=section)
    with pytest.raises(ConfigError, match=r"model\.backbone\.weights: .*r18\.pth: .*no key layer1"):
        build.build_model(config, num_classes=1)


def test_parts_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone: timm has no model 'resnot50'"):
        model_of(tmp_path, "model.backbone.model=resnot50")
    # This network's coarsest map has stride 32.
    with pytest.raises(ConfigError, match=r"model\.backbone: .* none of \[64\]"):
        model_of(tmp_path, "model.backbone.strides=[32, 64]")
    config = FasterRcnnConfig.model_construct(
        **load(tmp_path, text=NO_MASKS).model.__dict__ | {"image_mean": [0.5]}
    )
    with pytest.raises(ConfigError, match=r"image_mean has 1 values, model\.image_std 3"):
        build.build_model(config, num_classes=1)


# --- training -----------------------------------------------------------------------------------


def test_optimizers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    section = "train.optimizer={name: sgd, lr: 0.5, momentum: 0.8, weight_decay: 0.01}"
    sgd = build.build_optimizer(load(tmp_path, section), model)
    assert isinstance(sgd, torch.optim.SGD)
    groups = {g["name"]: g for g in sgd.param_groups}
    assert {n: (g["lr"], g["momentum"], g["weight_decay"]) for n, g in groups.items()} == {
        "decay": (0.5, 0.8, 0.01),
        "no_decay": (0.5, 0.8, 0.0),
    }
    assert [p is model[0].weight for p in groups["decay"]["params"]] == [True]

    section = "train.optimizer={name: adamw, lr: 0.1, betas: [0.5, 0.6], weight_decay: 0.2}"
    adamw = build.build_optimizer(load(tmp_path, section), model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.5, 0.6)
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.2, 0.0]


def test_schedules_count_updates(tmp_path: Path) -> None:
    """7 batches, two for each update, are 4 updates an epoch: 12 in all."""
    cosine = build.build_schedule(load(tmp_path, "train.accumulate=2"), 7)
    assert cosine == Cosine(12, final_factor=0.0, warmup_steps=0, warmup_factor=1e-3)
    section = (
        "train.schedule={name: multi_step, warmup_steps: 2, milestones: [0.5, 0.8], gamma: 0.2}"
    )
    steps = build.build_schedule(load(tmp_path, "train.accumulate=2", section), 7)
    assert steps == MultiStep((6, 10), gamma=0.2, warmup_steps=2, warmup_factor=1e-3)


def test_options(tmp_path: Path) -> None:
    options = build.build_options(
        load(
            tmp_path, "train.seed=4", "train.clip_norm=2.5", "train.amp=bf16", "train.save_every=9"
        )
    )
    assert (options.epochs, options.seed, options.clip_norm) == (3, 4, 2.5)
    assert (options.amp, options.checkpoint_every, options.best_metric) == ("bf16", 9, "segm/AP")
    assert build.build_options(load(tmp_path, text=NO_MASKS)).best_metric == "bbox/AP"
    both = load(tmp_path, "evaluation.iou_types=[segm, bbox]", "train.best_metric=bbox/AP50")
    assert build.build_options(both).best_metric == "bbox/AP50"
    with pytest.raises(ConfigError, match=r"best_metric 'segm/AP' is none of the scores: bbox/AP,"):
        build.build_options(load(tmp_path, "train.best_metric=segm/AP", text=NO_MASKS))


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.build_device(load(tmp_path, "train.device=cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build.build_device(load(tmp_path)) == torch.device("cuda")
    assert build.build_device(load(tmp_path, "train.device='cuda:1'")) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"train\.device is 'cuda:2': torch sees 2 GPUs"):
        build.build_device(load(tmp_path, "train.device='cuda:2'"))
    with pytest.raises(ConfigError, match=r"train\.device: .*gpu"):
        build.build_device(load(tmp_path, "train.device=gpu"))


# --- evaluation ---------------------------------------------------------------------------------


def two_classes(tmp_path: Path) -> CocoIndex:
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": [x, 2, 8, 9], "iscrowd": 0,
             "area": 72, "segmentation": [[x, 2, x + 8, 2, x + 8, 11, x, 11]]}
            for i, c, x in ((1, 5, 1), (2, 8, 11))
        ],
    }  # fmt: skip
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    return build_index(coco, tmp_path, source="two.json", need_masks=True)


def found(labels: list[int]) -> Instances:
    masks = torch.zeros(len(labels), 20, 20, dtype=torch.bool)
    for mask, x in zip(masks, (1, 11), strict=False):
        mask[2:11, x : x + 8] = True
    boxes = torch.tensor([[1.0, 2, 9, 11], [11, 2, 19, 11]])[: len(labels)]
    scores = torch.full((len(labels),), 0.9)
    return Instances(
        (20, 20), boxes, torch.tensor(labels, dtype=torch.int64), scores, BitMasks(masks)
    )


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """A model whose classes come in another order than the data's ids."""
    evaluator = build.build_evaluator(load(tmp_path), two_classes(tmp_path), ["dog", "cat"])
    evaluator.update([1], [found([1, 0])])
    scores = evaluator.compute()
    assert list(scores) == ["bbox", "segm"]
    assert all(score.stats["AP"] == pytest.approx(1) for score in scores.values())
    evaluator.reset()
    evaluator.update([1], [found([0, 1])])
    assert evaluator.compute()["bbox"].stats["AP"] == 0


def test_classes_that_the_model_does_not_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = build.build_evaluator(load(tmp_path), two_classes(tmp_path), ["dog"])
    assert "the model does not know the classes cat" in caplog.text
    evaluator.update([1], [found([])])
    assert evaluator.compute()["bbox"].stats["AP"] == 0
    with pytest.raises(ConfigError, match="the model's classes cow are not in the validation data"):
        build.build_evaluator(load(tmp_path), two_classes(tmp_path), ["dog", "cow"])


def test_what_is_scored(tmp_path: Path) -> None:
    assert build.iou_types(load(tmp_path)) == ["bbox", "segm"]
    assert build.iou_types(load(tmp_path, "evaluation.iou_types=[segm]")) == ["segm"]
    assert build.iou_types(load(tmp_path, text=NO_MASKS)) == ["bbox"]
    with pytest.raises(ConfigError, match="the model predicts no masks"):
        build.iou_types(load(tmp_path, "evaluation.iou_types=[segm]", text=NO_MASKS))


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    index = two_classes(tmp_path)
    build.build_train_loader(load(tmp_path), index)
    index.columns["is_crowd"][:] = 1
    with pytest.raises(ConfigError, match=r"data\.train has no object to learn from: 1 images"):
        build.build_train_loader(load(tmp_path), index)


def test_the_last_epochs_are_plain(tmp_path: Path) -> None:
    """Of 3 epochs the last 2 show the image as it is, the first a mosaic of it."""
    index = two_classes(tmp_path)
    settings = ["data.mosaic={height: 32, width: 48}", "data.workers=0"]
    loader = build.build_train_loader(load(tmp_path, *settings, "data.plain_epochs=2"), index)
    sizes = [[batch.targets[0].image_size for batch in loader.epoch(i)] for i in range(3)]
    assert sizes == [[(32, 48)], [(20, 20)], [(20, 20)]]
    with pytest.raises(ConfigError, match=r"plain_epochs is 3, but the whole training has only 3"):
        build.build_train_loader(load(tmp_path, *settings, "data.plain_epochs=3"), index)
