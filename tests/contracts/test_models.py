"""What every model must do. A new model is one more entry of `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

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
    RpnConfig,
)
from instseg.ops import instance_rles, rle
from instseg.structures import Instances, RoIMasks, SparseMasks

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

MODELS: dict[str, Callable[[], nn.Module]] = {
    "faster_rcnn_resnet18": lambda: build(
        FasterRcnnConfig(name="faster_rcnn", backbone=RESNET, **SMALL)
    ),
    "mask_rcnn_resnet18": lambda: build(
        MaskRcnnConfig(name="mask_rcnn", backbone=RESNET, mask_head=MASKS, **SMALL)
    ),
    "mask_rcnn_resnet18_frozen": lambda: build(
        MaskRcnnConfig(name="mask_rcnn", backbone=FROZEN, mask_head=MASKS, **SMALL)
    ),
    "mask_rcnn_timm": lambda: build(
        MaskRcnnConfig(name="mask_rcnn", backbone=LITE, mask_head=MASKS, **SMALL)
    ),
}


def build(config: FasterRcnnConfig | MaskRcnnConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, num_classes=NUM_CLASSES, load_backbone=False)


@pytest.fixture(params=list(MODELS))
def model(request) -> nn.Module:
    return MODELS[request.param]()


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def square(size: tuple[int, int], *, crowd: bool = False) -> Instances:
    corners = torch.tensor([[8.0, 8], [40, 8], [40, 40], [8, 40]]).double().numpy()
    return Instances(
        size,
        torch.tensor([[8.0, 8, 40, 40]]),
        torch.tensor([1]),
        masks=SparseMasks([[corners]], size, size),
        is_crowd=torch.tensor([crowd]),
    )


def test_losses_are_finite_scalars_with_gradients(model):
    model.train()
    sizes = [(64, 96), (75, 50)]
    losses = model([image(*s) for s in sizes], [square(s) for s in sizes])
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_training_lowers_the_loss(model):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    picture, target = [image(64, 64)], [square((64, 64))]
    history = []
    for _ in range(6):
        torch.manual_seed(1)
        loss = sum(model(picture, target).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append(loss.item())
    assert min(history[3:]) < history[0]


@pytest.mark.parametrize("crowd", [False, True], ids=["empty", "only crowd"])
def test_images_without_objects_train(model, crowd):
    size = (64, 64)
    target = square(size, crowd=True) if crowd else Instances.empty(size, with_masks=True)
    losses = model.train()([image(*size)], [target])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_rpn_box_reg"] == 0
    assert losses["loss_box_reg"] == 0
    assert losses.get("loss_mask", torch.tensor(0.0)) == 0
    sum(losses.values()).backward()


@pytest.mark.parametrize("size", [(64, 64), (33, 97), (31, 20), (1, 5)])
@torch.inference_mode()
def test_detections_keep_the_contract(model, size):
    (found,) = model.eval()([image(*size)])
    assert found.image_size == size
    assert found.boxes.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    n = len(found)
    assert found.scores.shape == (n,)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    if n:
        assert found.labels.min() >= 0
        assert found.labels.max() < NUM_CLASSES
        assert found.boxes.min() >= 0
        assert found.boxes[:, 0::2].max() <= size[1]
        assert found.boxes[:, 1::2].max() <= size[0]
        assert ((found.boxes[:, 2:] - found.boxes[:, :2]) > 0).all()
    if "mask_head" in dict(model.named_children()):
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
    model.box_head.score_threshold = 1.0
    (found,) = model.eval()([image(64, 64)])
    assert len(found) == 0
    assert found.masks is None or found.masks.probs.shape[1:] == (28, 28)


def test_state_dict_round_trip(model, tmp_path):
    from instseg.engine.weights import load_weights, save_weights

    save_weights(tmp_path / "w.safetensors", model.state_dict(), {})
    tensors, _ = load_weights(tmp_path / "w.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.load_state_dict(tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())


def test_frozen_parts_stay_frozen(model):
    model.train()
    frozen = [m for m in model.backbone.modules() if m in model.backbone._frozen]
    assert all(not m.training for m in frozen)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}
    model([image(64, 64)], [square((64, 64))])
    live = {k for k, v in model.state_dict().items() if k in before and not v.equal(before[k])}
    has_live_norm = any(
        isinstance(m, nn.BatchNorm2d) and m.training for m in model.backbone.modules()
    )
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
