"""Folding batch norm, and putting it back, leave the outputs of a network as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instseg.models.backbones.csp_darknet import CSPDarknet
from instseg.models.backbones.resnet import ResNet
from instseg.models.fuse import fold_batch_norm, restore_batch_norm


def randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)


NETWORKS = {
    "csp_darknet": lambda: CSPDarknet(0.33, 0.125, depthwise=True),
    "resnet": lambda: ResNet(18, norm="live", freeze_at=0),
}


@pytest.mark.parametrize("name", list(NETWORKS))
@torch.no_grad()
def test_folding_keeps_the_outputs(name):
    model = NETWORKS[name]().train()
    randomise(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert not folded.training
    image = torch.randn(2, 3, 64, 64)
    for a, b in zip(folded(image), model.eval()(image), strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()
    # The given model is as it was.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    left = [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    # ResNet's shortcuts are Sequentials, so that nothing is left there either.
    assert left == []


def test_batch_norm_that_follows_no_convolution_stays():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    randomise(model)
    folded = fold_batch_norm(model)
    assert [type(m) for m in folded] == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(folded(x), model.eval()(x))


def folded_identity(model: nn.Module) -> nn.Module:
    """A network whose batch norm is an identity with a bias, as a folded file leaves it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
            nn.init.ones_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    return model.eval()


@torch.no_grad()
def test_restoring_makes_training_mode_agree():
    """In evaluation nothing changes; in training the folded network is another, the restored not.

    The batch is the one measured, so that its statistics are the running ones.
    """
    model = folded_identity(CSPDarknet(0.33, 0.125))
    # Strong weights, so that layers' scales are far from 1.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(3)
    image = torch.randn(4, 3, 64, 64)
    wanted = model(image)
    restored = restore_batch_norm(model, [image[:2], image[2:]])
    assert not restored.training
    for a, b in zip(restored(image), wanted, strict=True):
        assert (a - b).abs().max() < 1e-3 * b.abs().max()
    for a, b, w in zip(restored.train()(image), model.train()(image), wanted, strict=True):
        assert (a - w).abs().max() < 2e-2 * w.abs().max()
        assert (b - w).abs().max() > 0.3 * w.abs().max()


@torch.no_grad()
def test_the_measured_figures():
    """Two batches of different sizes weigh by their pixels."""
    model = folded_identity(nn.Sequential(nn.Identity(), nn.BatchNorm2d(2)))
    a, b = torch.randn(1, 2, 4, 4) + 3, torch.randn(3, 2, 8, 8) * 2
    restored = restore_batch_norm(model, [a, b])
    pixels = torch.cat([a.transpose(0, 1).flatten(1), b.transpose(0, 1).flatten(1)], dim=1)
    assert torch.allclose(restored[1].running_mean, pixels.mean(dim=1), atol=1e-5)
    assert torch.allclose(restored[1].running_var, pixels.var(dim=1, correction=0), atol=1e-5)
    assert torch.equal(model[1].running_mean, torch.zeros(2))


@torch.no_grad()
def test_how_batches_are_run():
    model = folded_identity(nn.Sequential(nn.BatchNorm2d(2)))
    batches = [{"image": torch.randn(2, 2, 4, 4)}]
    restored = restore_batch_norm(model, batches, lambda m, batch: m(batch["image"]))
    assert torch.allclose(restored[0].running_mean, batches[0]["image"].mean(dim=(0, 2, 3)))
    with pytest.raises(ValueError, match="batches is empty"):
        restore_batch_norm(model, [])
