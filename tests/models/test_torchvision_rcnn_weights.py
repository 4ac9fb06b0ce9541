from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from instseg.models.backbones import ResNet
from instseg.models.foreign.torchvision_rcnn import convert_torchvision_state_dict, select_classes
from instseg.models.heads import BoxPredictor, MaskPredictor

RENAMED = {
    "backbone.body.conv1.weight": "backbone.conv1.weight",
    "backbone.body.layer3.5.bn2.running_mean": "backbone.layer3.5.bn2.running_mean",
    "backbone.fpn.inner_blocks.2.0.weight": "neck.lateral.2.0.weight",
    "backbone.fpn.inner_blocks.2.weight": "neck.lateral.2.0.weight",
    "backbone.fpn.inner_blocks.3.1.running_mean": "neck.lateral.3.1.running_mean",
    "backbone.fpn.layer_blocks.0.0.bias": "neck.output.0.0.bias",
    "backbone.fpn.layer_blocks.0.bias": "neck.output.0.0.bias",
    "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
    "rpn.head.conv.1.0.bias": "rpn.head.conv.1.0.bias",
    "rpn.head.cls_logits.bias": "rpn.head.objectness.bias",
    "rpn.head.bbox_pred.weight": "rpn.head.offsets.weight",
    "roi_heads.box_head.fc7.weight": "box_head.body.fc7.weight",
    "roi_heads.box_head.3.1.weight": "box_head.body.convs.3.1.weight",
    "roi_heads.box_head.5.bias": "box_head.body.fc.bias",
    "roi_heads.box_predictor.cls_score.weight": "box_head.predictor.cls_score.weight",
    "roi_heads.box_predictor.bbox_pred.bias": "box_head.predictor.bbox_pred.bias",
    "roi_heads.mask_head.mask_fcn1.weight": "mask_head.body.0.0.weight",
    "roi_heads.mask_head.mask_fcn4.bias": "mask_head.body.3.0.bias",
    "roi_heads.mask_head.2.1.bias": "mask_head.body.2.1.bias",
    "roi_heads.mask_predictor.conv5_mask.bias": "mask_head.predictor.upsample.bias",
    "roi_heads.mask_predictor.mask_fcn_logits.weight": "mask_head.predictor.logits.weight",
}


@pytest.mark.parametrize(("theirs", "ours"), list(RENAMED.items()))
def test_names(theirs, ours):
    tensor = torch.randn(3)
    converted = convert_torchvision_state_dict({theirs: tensor})
    assert list(converted) == [ours]
    assert converted[ours] is tensor


@pytest.mark.parametrize(
    "key",
    [
        "backbone.conv1.weight",
        "roi_heads.keypoint_head.0.weight",
        "roi_heads.box_head.fc8.weight",
        "module.backbone.body.conv1.weight",
        "head.classification_head.conv.0.0.weight",
    ],
)
def test_keys_of_other_models_are_refused(key):
    with pytest.raises(ValueError, match=f"the key '{key}' is not of torchvision's"):
        convert_torchvision_state_dict({key: torch.zeros(1)})


@pytest.mark.parametrize("builder", [tv.maskrcnn_resnet50_fpn, tv.maskrcnn_resnet50_fpn_v2])
def test_no_two_keys_fall_together(builder):
    """Each tensor goes on once; batch norm without a counter gets one."""
    with torch.device("meta"):
        state = builder(weights=None, weights_backbone=None, num_classes=3).state_dict()
    converted = convert_torchvision_state_dict(state)
    kept = [id(v) for k, v in converted.items() if id(v) in set(map(id, state.values()))]
    assert sorted(kept) == sorted(map(id, state.values()))
    added = set(converted) - {k for k, v in converted.items() if id(v) in set(kept)}
    assert all(k.endswith(".num_batches_tracked") and converted[k] == 0 for k in added)
    norms = [k for k in converted if k.endswith(".running_var")]
    assert len([k for k in converted if k.endswith(".num_batches_tracked")]) == len(norms) > 0


def frozen_body(eps: float) -> nn.Module:
    """A ResNet-18 body with frozen batch norm, some of whose variances are as small as eps."""
    body = resnet18(norm_layer=partial(FrozenBatchNorm2d, eps=eps)).eval()
    for name, buffer in body.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
            buffer[::5] = 3e-5
        elif name.endswith("weight"):
            # Small where the variance is, so that the features stay of one size.
            buffer.uniform_(0.5, 1)
            buffer[::5] = 3e-3
        else:
            buffer.normal_(std=0.2)
    return body


def maps_after(body: nn.Module, image: Tensor, frozen_eps: float | None) -> list[Tensor]:
    state = {f"backbone.body.{k}": v for k, v in body.state_dict().items() if k[:3] != "fc."}
    converted = convert_torchvision_state_dict(state, frozen_eps=frozen_eps)
    backbone = ResNet(18).eval()
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in converted.items()})
    return backbone(image)


@pytest.mark.parametrize(("eps", "frozen_eps"), [(0.0, 0.0), (1e-3, 1e-3), (1e-5, None)])
@torch.no_grad()
def test_frozen_batch_norm_of_any_epsilon_gives_the_same_maps(eps, frozen_eps):
    body, image = frozen_body(eps), torch.randn(1, 3, 32, 32)
    layers = {f"layer{i}": str(i) for i in range(1, 5)}
    wanted = list(IntermediateLayerGetter(body, layers)(image).values())
    for got, reference in zip(maps_after(body, image, frozen_eps), wanted, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_epsilon_matters():
    """Without it the maps above differ by far more than their tolerance."""
    body, image = frozen_body(0.0), torch.randn(1, 3, 32, 32)
    right, wrong = maps_after(body, image, 0.0), maps_after(body, image, None)
    assert (right[-1] - wrong[-1]).abs().max() > 1e-2


@torch.no_grad()
def test_one_layer_with_a_variance_below_its_epsilon():
    """With epsilon 0 a variance of 1e-6 becomes a negative one, and the quotient stays."""
    theirs = FrozenBatchNorm2d(3, eps=0.0)
    theirs.running_var.copy_(torch.tensor([1e-6, 1e-5, 1.0]))
    state = {f"backbone.body.bn1.{k}": v for k, v in theirs.state_dict().items()}
    converted = convert_torchvision_state_dict(state, frozen_eps=0.0)
    ours = nn.BatchNorm2d(3).eval()
    ours.load_state_dict({k.removeprefix("backbone.bn1."): v for k, v in converted.items()})
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_epsilon_is_the_backbones_alone():
    """Norms of the neck and heads are live ones, trained with their own epsilon."""
    keys = ["backbone.body.bn1", "backbone.fpn.inner_blocks.0.1", "roi_heads.box_head.0.1"]
    state = {f"{k}.running_var": torch.ones(2) for k in keys}
    converted = convert_torchvision_state_dict(state, frozen_eps=0.0)
    assert converted["backbone.bn1.running_var"].tolist() == pytest.approx([1 - 1e-5] * 2, abs=1e-7)
    assert converted["neck.lateral.0.1.running_var"].tolist() == [1, 1]
    assert converted["box_head.body.convs.0.1.running_var"].tolist() == [1, 1]
    assert all((v == 1).all() for v in state.values())


def predictor_state(*, masks: bool = True) -> dict[str, Tensor]:
    """Three classes and the background; every value tells its class (0 is the background)."""
    rows = torch.arange(4.0)
    corners = rows[:, None] + torch.arange(4) / 10
    state = {
        "neck.output.0.0.bias": torch.ones(4),
        "box_head.predictor.cls_score.weight": rows[:, None].expand(4, 5),
        "box_head.predictor.cls_score.bias": rows,
        "box_head.predictor.bbox_pred.weight": corners.reshape(16, 1).expand(16, 5),
        "box_head.predictor.bbox_pred.bias": corners.flatten(),
    }
    if masks:
        state["mask_head.predictor.logits.weight"] = rows[:, None, None, None].expand(4, 6, 1, 1)
        state["mask_head.predictor.logits.bias"] = rows
    return state


@pytest.mark.parametrize("keep", [[2, 0], [1], [0, 1, 2], [], [1, 1]])
@pytest.mark.parametrize("masks", [True, False])
def test_select_classes(keep, masks):
    state = predictor_state(masks=masks)
    selected = select_classes(state, keep)
    assert selected.keys() == state.keys()
    rows = [0.0, *(k + 1.0 for k in keep)]
    boxes = [row + c / 10 for row in rows for c in range(4)]
    expected = {"cls_score": rows, "bbox_pred": boxes, "logits": rows}
    for name, values in expected.items():
        for key in (k for k in selected if f".{name}." in k):
            tensor = selected[key]
            assert tensor.shape == (len(values), *state[key].shape[1:])
            assert tensor.reshape(len(values), -1)[:, 0].tolist() == pytest.approx(values)
    assert selected["neck.output.0.0.bias"] is state["neck.output.0.0.bias"]
    assert len(state["box_head.predictor.cls_score.bias"]) == 4


def test_a_class_beyond_the_last_is_refused():
    with pytest.raises(ValueError):
        select_classes(predictor_state(), [3])


def test_a_negative_class_is_refused():
    with pytest.raises(ValueError):
        select_classes(predictor_state(), [-1])


@torch.no_grad()
def test_a_detector_of_fewer_classes_scores_them_as_before():
    """Logits and boxes of the kept classes are those of the whole model."""
    whole, part = BoxPredictor(5, 4), BoxPredictor(5, 2)
    masks, few_masks = MaskPredictor(5, 4, 6), MaskPredictor(5, 2, 6)
    state = {f"box_head.predictor.{k}": v for k, v in whole.state_dict().items()}
    state |= {f"mask_head.predictor.{k}": v for k, v in masks.state_dict().items()}
    selected = select_classes(state, [3, 1])
    for module, prefix in ((part, "box_head.predictor."), (few_masks, "mask_head.predictor.")):
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in selected.items() if k.startswith(prefix)}
        )
    x, maps = torch.randn(6, 5), torch.randn(6, 5, 4, 4)
    for got, wanted in zip(part(x), whole(x), strict=True):
        torch.testing.assert_close(got, wanted[:, [0, 4, 2]])
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    torch.testing.assert_close(few_masks(maps, labels), masks(maps, torch.tensor([3, 1])[labels]))
