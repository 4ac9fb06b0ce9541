"""Weighted sums of losses by name."""

from __future__ import annotations

import pytest
import torch

from instseg.losses.segmentation import LOSSES, SegmentationLoss, bce, dice, tversky
from tests.losses.segmentation_cases import CASES, ONE_MODE, some


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_every_loss_by_its_name(mode):
    batch = some(mode)
    weights = {name: 0.5 + i for i, (name, its) in enumerate(CASES) if its == mode}
    loss = SegmentationLoss(weights, mode=mode, class_weights=batch.class_weights.tolist())
    values = loss(batch.logits, batch.target, batch.pixel_weights)
    assert list(values) == [f"loss_{name}" for name in weights]
    for name, weight in weights.items():
        expected = weight * batch.loss(LOSSES[name], mode)
        torch.testing.assert_close(values[f"loss_{name}"], expected)
        assert values[f"loss_{name}"].shape == ()


def test_options_reach_their_loss():
    batch = some("multilabel")._replace(class_weights=None, pixel_weights=None)
    target = batch.target.where(batch.target != 255, 7)
    loss = SegmentationLoss(
        {"bce": 1, "dice": 2.5, "tversky": 1},
        mode="multilabel",
        ignore_index=7,
        options={"dice": {"smooth": 0.0, "batch": True}, "tversky": {"beta": 0.9}},
    )
    values = loss(batch.logits, target)
    expected = {
        "loss_bce": batch.loss(bce, "multilabel"),
        "loss_dice": 2.5 * batch.loss(dice, "multilabel", smooth=0.0, batch=True),
        "loss_tversky": batch.loss(tversky, "multilabel", beta=0.9),
    }
    torch.testing.assert_close(values, expected)


def test_class_weights_are_no_parameters():
    """They move with the module, and no checkpoint holds them."""
    loss = SegmentationLoss({"cross_entropy": 1}, mode="multiclass", class_weights=[1, 2, 0.5])
    assert [name for name, _ in loss.named_buffers()] == ["class_weights"]
    assert loss.class_weights.tolist() == [1, 2, 0.5]
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert repr(loss) == "SegmentationLoss({'cross_entropy': 1}, mode='multiclass')"


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({}, {}, "weights must name at least one loss of: cross_entropy, bce, "),
        ({"dise": 1}, {}, "unknown loss 'dise': did you mean dice.* valid are cross_entropy, bce"),
        ({"qqq": 1}, {}, "unknown loss 'qqq': valid are cross_entropy"),
        ({"dice": -1}, {}, "weight of loss 'dice' must be finite and at least 0, got -1"),
        ({"dice": float("nan")}, {}, "weight of loss 'dice' must be finite"),
        ({"dice": 1}, {"bce": {}}, "unknown loss in options 'bce': valid are dice"),
        (
            {"dice": 1},
            {"dice": {"smoth": 1}},
            "unknown argument of loss 'dice' 'smoth': did you mean smooth.* valid are batch, ",
        ),
        ({"dice": 1}, {"dice": {"mode": 1}}, "unknown argument of loss 'dice' 'mode'"),
        ({"cross_entropy": 1}, {"cross_entropy": {"a": 1}}, "valid are none"),
        ({"dice": 1}, {"dice": {"smooth": -1}}, "smooth must be at least 0"),
    ],
)
def test_bad_names(weights, options, message):
    mode = "multiclass"
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(weights, mode=mode, options=options)


@pytest.mark.parametrize(("name", "mode"), list(ONE_MODE.items()))
def test_the_wrong_mode_is_refused_at_once(name, mode):
    SegmentationLoss({name: 1}, mode=mode)
    other = {"multiclass": "multilabel", "multilabel": "multiclass"}[mode]
    with pytest.raises(ValueError, match=f"{name} is defined for mode '{mode}' only"):
        SegmentationLoss({name: 1}, mode=other)


@pytest.mark.parametrize("values", [[1.0, -1.0], [1.0, float("inf")], [1.0]])
def test_bad_class_weights_are_refused_at_once(values):
    with pytest.raises(ValueError, match="must"):
        SegmentationLoss({"dice": 1}, mode="multiclass", class_weights=values)
