"""Detectors made faster say the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from instseg.models.detection.detector import Detector
from instseg.models.detection.grid import GridHead
from instseg.models.detection.one_stage import OneStageDetector
from instseg.models.detection.squeezedet import squeezedet
from instseg.models.detection.ssd import ssdlite320_mobilenet_v3_large
from instseg.models.detection.yolox import yolox_nano
from instseg.models.optimize import optimize_for_inference

MODELS = {
    "yolox_nano": lambda: yolox_nano(3, input_size=64),
    "ssdlite": lambda: ssdlite320_mobilenet_v3_large(3),
    "squeezedet": lambda: squeezedet(3),
}


@pytest.fixture(params=list(MODELS))
def model(request) -> Detector:
    torch.manual_seed(1)
    model: OneStageDetector = MODELS[request.param]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    model.head.score_threshold = 1e-4
    return model.eval()


def outputs(model: Detector, images: list[torch.Tensor]) -> list[torch.Tensor]:
    """All that the layers of the model say."""
    backbone, neck, head = model.networks
    features = neck(backbone(model.preprocess(images).tensor))
    said = head(features[-1] if isinstance(model.head, GridHead) else features)
    parts = said if isinstance(said, tuple) else [said]
    return [*features, *(part for part in parts if part.numel())]  # YOLOX has no coefficients here


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_the_same_outputs(model, compiled, monkeypatch):
    if compiled:  # the graphs, without the minute that code generation takes
        whole = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda m, options: whole(m, backend="eager"))
    before = copy.deepcopy(model.state_dict())
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    fast = optimize_for_inference(model, compiled=compiled)
    for got, wanted in zip(outputs(fast, images), outputs(model, images), strict=True):
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert [len(found) for found in fast(images)] == [len(found) for found in model(images)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_lie_channels_last(model):
    fast = optimize_for_inference(model)
    convs = [m for m in fast.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[2] > 1]
    assert convs
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convs)
    assert not fast.training
