from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from instseg.models.semantic.ternausnet import ternausnet


def test_parameters_are_the_papers():
    """VGG-11's convolutions, then each block of the paper's figure, by its channels."""

    def conv(a: int, b: int) -> int:  # 3x3, plain or transposed, with bias
        return 9 * a * b + b

    encoder = (
        conv(3, 64)
        + conv(64, 128)
        + conv(128, 256) + conv(256, 256)
        + conv(256, 512) + conv(512, 512)
        + conv(512, 512) + conv(512, 512)
    )  # fmt: skip
    decoder = (
        conv(512, 512) + conv(512, 256)  # center
        + conv(256 + 512, 512) + conv(512, 256)
        + conv(256 + 512, 512) + conv(512, 128)
        + conv(128 + 256, 256) + conv(256, 64)
        + conv(64 + 128, 128) + conv(128, 32)
        + conv(32 + 64, 32)
    )  # fmt: skip
    head = 32 + 1
    assert (encoder, decoder, head) == (9_220_480, 13_706_880, 33)
    with torch.device("meta"):
        network = ternausnet()
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (network.encoder, network.decoder, network.head)
    ]
    assert counts == [encoder, decoder, head]
    assert sum(counts) == 22_927_393


def test_shapes():
    with torch.device("meta"):
        network = ternausnet(2, 4)
        assert network(torch.zeros(1, 4, 96, 64)).shape == (1, 2, 96, 64)
    assert [network.valid_size(n) for n in (1, 32, 33, 1000)] == [32, 32, 64, 1024]
    assert network.border == 0
    assert network.output_size(64) == 64
    assert (network.in_channels, network.num_outputs) == (4, 2)


def test_forward_is_the_figures():
    """The figure once more, as a plain sequence of operations in float64."""
    torch.manual_seed(0)
    network = ternausnet(width=8).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    weights = network.state_dict()

    def conv(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()

    def block(x, name):
        x = conv(x, f"{name}.0")
        weight, bias = weights[f"{name}.2.weight"], weights[f"{name}.2.bias"]
        # A transposed convolution: zeros between the pixels, then the kernel turned round.
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2] + 2, 2 * x.shape[3] + 2)
        spread[..., 1:-1:2, 1:-1:2] = x
        return F.conv2d(spread, weight.transpose(0, 1).flip(2, 3), bias).relu()

    x = torch.rand(2, 3, 64, 32, dtype=torch.float64)
    maps, out = [], x
    for stage in ((0,), (3,), (6, 8), (11, 13), (16, 18)):
        for layer in stage:
            out = conv(out, f"encoder.features.{layer}")
        maps.append(out)
        out = F.max_pool2d(out, 2)
    out = block(out, "decoder.blocks.0")
    for i, skip in enumerate(maps[:0:-1]):
        out = block(torch.cat([out, skip], 1), f"decoder.blocks.{i + 1}")
    out = conv(torch.cat([out, maps[0]], 1), "decoder.last.0")
    wanted = F.conv2d(out, weights["head.weight"], weights["head.bias"])
    assert wanted.std() > 1e-3
    torch.testing.assert_close(network(x), wanted)


def test_imagenet_weights_load():
    torch.manual_seed(0)
    features = make_layers(cfgs["A"])
    theirs = nn.ModuleDict({"features": features, "classifier": nn.Linear(2, 2)})
    network = ternausnet()
    network.encoder.load_classifier(theirs.state_dict())
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network.encoder(x)[-1], features(x))
    with pytest.raises(ValueError, match="not of a VGG-11"):
        network.encoder.load_classifier(make_layers(cfgs["B"]).state_dict(prefix="features."))


def test_gradients_reach_all():
    torch.manual_seed(0)
    network = ternausnet(width=8)
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_one_compiled_graph():
    network = ternausnet(width=4).eval()
    x = torch.rand(1, 3, 32, 64)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))
