"""What every model must do. A new model is one more entry of `MODELS`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from instseg.config.build_model import build_model
from instseg.config.schema_backbone import ResNetConfig, TimmConfig
from instseg.config.schema_model import (
    BoxHeadConfig,
    FasterRcnnConfig,
    FcBodyConfig,
    FcnMaskHeadConfig,
    FpnConfig,
    MaskRcnnConfig,
    ModelConfig,
    RpnConfig,
)
from instseg.config.schema_one_stage import (
    DetectNetConfig,
    PrototypesConfig,
    RetinaNetConfig,
    SqueezeDetConfig,
    SsdConfig,
    YoloV1Config,
    YoloV2Config,
    YoloxConfig,
)
from instseg.models.backbones.vgg import SSDVGG
from instseg.models.default_boxes import ssd300_default_boxes, ssd512_default_boxes
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.ssd import SSDHead
from instseg.models.detection.yolov1 import YOLOv1Head
from instseg.models.heads.ssd import SSDPredictor
from instseg.models.necks.ssd import SSDExtraLayers
from instseg.models.preprocess import Preprocess
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, RoIMasks, SparseMasks

from .common import (
    check_compiles_in_one_graph,
    check_gradients,
    check_outputs_repeat,
    check_state_dict_round_trip,
    check_training_repeats,
    class_layers,
    loss_history,
)

NUM_CLASSES = 3

SMALL = {
    "neck": FpnConfig(channels=32),
    "rpn": RpnConfig(train_after_nms=100, test_after_nms=50),
    "box_head": BoxHeadConfig(
        body=FcBodyConfig(name="fc", channels=64), samples=32, score_threshold=0.2
    ),
}
RESNET = ResNetConfig(name="resnet", depth=18, norm="live", freeze_at=0)
FROZEN = ResNetConfig(name="resnet", depth=18, norm="frozen", freeze_at=2, weights="torchvision")
LITE = TimmConfig(name="timm", model="tf_efficientnet_lite0")
MASKS = FcnMaskHeadConfig(name="fcn", channels=[32, 32])

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "faster_rcnn_resnet18": lambda n: build(
        n, FasterRcnnConfig(name="faster_rcnn", backbone=RESNET, **SMALL)
    ),
    "mask_rcnn_resnet18": lambda n: build(
        n, MaskRcnnConfig(name="mask_rcnn", backbone=RESNET, mask_head=MASKS, **SMALL)
    ),
    "mask_rcnn_resnet18_frozen": lambda n: build(
        n, MaskRcnnConfig(name="mask_rcnn", backbone=FROZEN, mask_head=MASKS, **SMALL)
    ),
    "mask_rcnn_timm": lambda n: build(
        n, MaskRcnnConfig(name="mask_rcnn", backbone=LITE, mask_head=MASKS, **SMALL)
    ),
    "ssd300": lambda n: narrow_ssd(n, 300),
    "ssd512": lambda n: narrow_ssd(n, 512),
    "ssdlite320": lambda n: build(
        n, SsdConfig(name="ssd", variant="ssdlite320_mobilenet_v3_large")
    ),
    "ssdlite_timm": lambda n: build(
        n,
        SsdConfig(
            name="ssd",
            variant="ssdlite320_mobilenet_v3_large",
            backbone=TimmConfig(name="timm", model="tf_efficientnet_lite0", strides=[16, 32]),
        ),
    ),
    "retinanet": lambda n: build(
        n, RetinaNetConfig(name="retinanet", backbone=RESNET, channels=32, depth=2)
    ),
    "retinanet_v2_seg": lambda n: build(
        n,
        RetinaNetConfig(
            name="retinanet",
            backbone=RESNET,
            channels=32,
            depth=2,
            norm="group",
            box_loss="giou",
            masks=PrototypesConfig(number=8, channels=16, mask_size=28),
        ),
    ),
    "yolov1": lambda n: build(n, YoloV1Config(name="yolov1", width=1 / 16, hidden=64)),
    "yolov2": lambda n: build(n, YoloV2Config(name="yolov2", width=1 / 16)),
    "yolox_nano": lambda n: build(n, YoloxConfig(name="yolox", input_size=64)),
    "yolox_tiny_seg": lambda n: build(
        n,
        YoloxConfig(
            name="yolox",
            variant="yolox_tiny",
            input_size=64,
            masks=PrototypesConfig(number=8, channels=16, mask_size=28),
            use_l1=True,
            multi_label=True,
        ),
    ),
    "squeezedet": lambda n: build(n, SqueezeDetConfig(name="squeezedet")),
    "detectnet": lambda n: build(n, DetectNetConfig(name="detectnet")),
}


def build(num_classes: int, config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, num_classes=num_classes, load_backbone=False)


def narrow_ssd(num_classes: int, size: Literal[300, 512]) -> nn.Module:
    """SSD with an eighth of VGG's channels."""
    torch.manual_seed(0)
    backbone = SSDVGG(width=8)
    neck = SSDExtraLayers(backbone.channels, size)
    boxes = ssd300_default_boxes() if size == 300 else ssd512_default_boxes()
    # Untrained, most of the best boxes lie in the padding.
    head = SSDHead(
        boxes, SSDPredictor(neck.channels, boxes.num_boxes, num_classes), max_candidates=10_000
    )
    preprocess = Preprocess(size_divisor=1, min_size=(size, size))
    return OneStageDetector(preprocess, backbone, neck, head)


@pytest.fixture(params=list(MODELS))
def model(request) -> nn.Module:
    return MODELS[request.param](NUM_CLASSES)


def box_head(model: nn.Module) -> nn.Module:
    return model.head if isinstance(model, OneStageDetector) else model.box_head


def has_masks(model: nn.Module) -> bool:
    return any(name.split(".")[-1] in ("mask_head", "masks") for name, _ in model.named_modules())


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def square(size: tuple[int, int], *, crowd: bool = False) -> Instances:
    corners = box_polygon([8.0, 8, 40, 40])
    return Instances(
        size,
        torch.tensor([[8.0, 8, 40, 40]]),
        torch.tensor([1]),
        masks=SparseMasks([[corners]], size, size),
        is_crowd=torch.tensor([crowd]),
    )


def thousands(size: tuple[int, int]) -> Instances:
    """Of one class, so that the others are absent."""
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(2000, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 1.2
    boxes = torch.cat([corner, corner + 1 + torch.rand(2000, 2, generator=generator) * 30], dim=1)
    polygons = [[box_polygon(box)] for box in boxes.double().tolist()]
    return Instances(
        size,
        boxes,
        torch.ones(2000, dtype=torch.int64),
        masks=SparseMasks(polygons, size, size),
    )


def box_polygon(box: list[float]) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def test_losses_are_finite_scalars_with_gradients(model):
    sizes = [(64, 96), (75, 50)]
    losses = model.train()([image(*s) for s in sizes], [square(s) for s in sizes])
    check_gradients(model, losses)


def test_training_lowers_the_loss(model):
    history = loss_history(model, [image(64, 64)], [square((64, 64))], lr=0.01, steps=12)
    assert min(history[6:]) < history[0]


@pytest.mark.parametrize("crowd", [False, True], ids=["empty", "only crowd"])
def test_images_without_objects_train(model, crowd):
    size = (64, 64)
    target = square(size, crowd=True) if crowd else Instances.empty(size, with_masks=True)
    losses = model.train()([image(*size)], [target])
    of_objects = {"loss_rpn_box_reg", "loss_box_reg", "loss_l1", "loss_mask"}
    assert all(losses[name] == 0 for name in of_objects & losses.keys())
    check_gradients(model, losses)


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (31, 20), (1, 5)])
@torch.inference_mode()
def test_detections_keep_the_contract(model, size):
    if isinstance(model, OneStageDetector):
        model.head.score_threshold = 1e-6  # so that the untrained find something
    (found,) = model.eval()([image(*size)])
    assert found.image_size == size
    assert found.boxes.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    n = len(found)
    assert found.scores.shape == (n,)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    # Untrained, all may lie in what pads a small image; of YOLOv1's cells, one alone does not.
    assert n > 0 or size[0] < 32 or isinstance(box_head(model), YOLOv1Head)
    if n:
        assert found.labels.min() >= 0
        assert found.labels.max() < NUM_CLASSES
        assert found.boxes.min() >= 0
        assert found.boxes[:, 0::2].max() <= size[1]
        assert found.boxes[:, 1::2].max() <= size[0]
        assert ((found.boxes[:, 2:] - found.boxes[:, :2]) > 0).all()
    if has_masks(model):
        assert isinstance(found.masks, RoIMasks)
        assert found.masks.probs.shape == (n, 28, 28)
        codes = instance_rles(found)
        assert all(tuple(code["size"]) == size for code in codes)
        assert all(0 <= rle.area(code) <= size[0] * size[1] for code in codes)


@torch.inference_mode()
def test_a_batch_of_two_sizes_gives_each_image_its_own(model):
    small, large = image(64, 64), image(80, 96, seed=1)
    both = model.eval()([small, large])
    assert [f.image_size for f in both] == [(64, 64), (80, 96)]
    # Padding reaches a few border pixels of the features: the larger image has none.
    (alone,) = model([large])
    assert len(both[1]) == len(alone)
    assert torch.allclose(both[1].boxes, alone.boxes, atol=1e-2)


@torch.inference_mode()
def test_nothing_found_is_an_empty_result(model):
    box_head(model).score_threshold = 1.0
    (found,) = model.eval()([image(64, 64)])
    assert len(found) == 0
    assert found.masks is None or found.masks.probs.shape[1:] == (28, 28)


def test_state_dict_round_trip(model, tmp_path):
    check_state_dict_round_trip(model, tmp_path)


def test_frozen_parts_stay_frozen(model):
    model.train()
    frozen = [m for m in model.backbone.modules() if m in model.backbone._frozen]
    assert all(not m.training for m in frozen)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}
    model([image(64, 64)], [square((64, 64))])
    live = {k for k, v in model.state_dict().items() if k in before and not v.equal(before[k])}
    has_live_norm = any(isinstance(m, nn.BatchNorm2d) and m.training for m in model.modules())
    assert bool(live) == has_live_norm


def test_bfloat16_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([image(64, 64)], [square((64, 64))])
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        with torch.inference_mode():
            (found,) = model.eval()([image(64, 64)])
    assert found.boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        ([], None, "at least one image"),
        ([torch.zeros(1, 8, 8)], None, r"images must be \[3, H, W\], got \[1, 8, 8\]"),
        (
            [torch.zeros(3, 8, 8, dtype=torch.int32)],
            None,
            "uint8, uint16 or floating, got torch.int32",
        ),
        ([image(64, 64)], [], "1 images but 0 targets"),
        ([image(64, 64)], [square((64, 60))], r"image 0 is \(64, 64\).*for \(64, 60\)"),
    ],
)
def test_bad_input_is_named(model, images, targets, message):
    with pytest.raises(ValueError, match=message):
        model(images, targets)


def test_uint16_is_the_same_picture(model):
    picture = image(64, 64)
    wide = picture.to(torch.int32) * 257
    with torch.inference_mode():
        a = model.eval().preprocess([picture]).tensor
        b = model.preprocess([wide.to(torch.uint16)]).tensor
    assert torch.allclose(a, b, atol=1e-6)


@torch.inference_mode()
def test_outputs_repeat_to_the_bit(model):
    check_outputs_repeat(model, [image(64, 96), image(70, 50, seed=1)])


def test_training_repeats_to_the_bit(model):
    check_training_repeats(model, [image(64, 64)], [square((64, 64))])


@pytest.mark.parametrize("name", list(MODELS))
def test_class_layers_are_those_whose_shapes_follow_the_classes(name):
    differing, named = class_layers(MODELS[name])
    assert differing <= named
    # The layers of masks are new with their task, even where their shapes are the same.
    assert [key for key in named - differing if not re.search("mask|coefficients", key)] == []


@pytest.mark.parametrize("sizes", [[(33, 97)], [(1, 5), (40, 20)]], ids=["one", "tiny"])
def test_thousands_of_objects(model, sizes):
    """On and around small images, so that most share cells, and many lie outside."""
    losses = model.train()([image(*s) for s in sizes], [thousands(s) for s in sizes])
    check_gradients(model, losses)


@torch.inference_mode()
def test_networks_compile_in_one_graph(model):
    if isinstance(model, OneStageDetector):
        model.head.score_threshold = 1e-6
    check_compiles_in_one_graph(model, [image(64, 96)])
