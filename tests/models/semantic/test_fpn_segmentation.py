from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones import ResNet
from instseg.models.backbones.unet import ContractingPath
from instseg.models.backbones.vgg import VGG
from instseg.models.semantic.decoders import FPNDecoder
from instseg.models.semantic.fpn import fpn_segmentation, unet_fpn
from instseg.models.semantic.network import EncoderDecoder


def small(encoder=None, **options) -> EncoderDecoder:
    torch.manual_seed(0)
    if encoder is None:
        encoder = ResNet(18, norm="live", freeze_at=0)
    channels = {"pyramid_channels": 32, "segmentation_channels": 32}
    return fpn_segmentation(encoder, 3, **{**channels, **options})


def test_parameters_are_the_papers():
    with torch.device("meta"):
        encoder = ResNet(50)
        network = fpn_segmentation(encoder, 54)
    laterals = (256 + 512 + 1024 + 2048) * 256 + 4 * 256
    outputs = 4 * (9 * 256 * 256 + 256)
    # The strides 4, 8, 16, 32 have 1, 1, 2 and 3 convolutions, each with group norm's two figures.
    branches = 4 * (9 * 256 * 128 + 2 * 128) + 3 * (9 * 128 * 128 + 2 * 128)
    head = 128 * 54 + 54
    own = sum(p.numel() for p in network.parameters())
    own -= sum(p.numel() for p in encoder.parameters())
    assert (laterals, outputs, branches, head) == (984_064, 2_360_320, 1_623_808, 6_966)
    assert own == laterals + outputs + branches + head


def test_forward_is_figure_3():
    """The branches once more, as a plain sequence of operations in float64."""
    network = small().double().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, std=0.2)
    weights = network.state_dict()

    def double_size(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def stage(x: Tensor, name: str, place: int) -> Tensor:
        x = F.conv2d(x, weights[f"{name}.{place}.0.weight"], padding=1)
        groups = x.unflatten(1, (8, -1)).flatten(2)
        mean = groups.mean(-1, keepdim=True)
        var = groups.var(-1, correction=0, keepdim=True)
        x = ((groups - mean) / (var + 1e-5).sqrt()).view_as(x)
        scale, shift = weights[f"{name}.{place}.1.weight"], weights[f"{name}.{place}.1.bias"]
        return (x * scale[:, None, None] + shift[:, None, None]).relu()

    x = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    p2, p3, p4, p5, _ = network.decoder.pyramid(network.encoder(x))
    total = stage(p2, "decoder.branches.0", 0)
    total += double_size(stage(p3, "decoder.branches.1", 0))
    once = double_size(stage(p4, "decoder.branches.2", 0))
    total += double_size(stage(once, "decoder.branches.2", 2))
    once = double_size(stage(p5, "decoder.branches.3", 0))
    once = double_size(stage(once, "decoder.branches.3", 2))
    total += double_size(stage(once, "decoder.branches.3", 4))
    assert total.shape == (2, 32, 16, 24)
    logits = F.conv2d(total, weights["head.0.weight"], weights["head.0.bias"])
    wanted = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(network(x), wanted)


@pytest.mark.parametrize(
    ("encoder", "stride", "levels"),
    [
        (lambda: ResNet(18), 4, 4),
        (lambda: ResNet(18, strides=(2, 4, 8, 16, 32)), 4, 4),
        (lambda: ResNet(18, strides=(2, 4, 8, 16, 32)), 2, 5),
        (lambda: ResNet(18, strides=(8, 16, 32)), 4, 3),
        (lambda: VGG(11, width=8), 1, 6),
        (lambda: ContractingPath(3, width=8, depth=3), 4, 2),
    ],
)
def test_encoders(encoder, stride, levels):
    network = small(encoder(), stride=stride).eval()
    assert len(network.decoder.branches) == levels
    x = torch.rand(1, 3, 64, 96)
    assert network.decoder(network.encoder(x)).shape == (1, 32, 64 // stride, 96 // stride)
    assert network(x).shape == (1, 3, 64, 96)
    assert network.valid_size(90) == 96
    assert network.border == 0


def test_unet_fpn():
    with torch.device("meta"):
        network = unet_fpn()
        logits = network(torch.zeros(1, 1, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    assert network.encoder.strides == [1, 2, 4, 8, 16]
    assert network.encoder.channels == [64, 128, 256, 512, 1024]
    assert network.valid_size(17) == 32
    assert (network.in_channels, network.num_outputs) == (1, 2)


@pytest.mark.parametrize(
    ("strides", "stride", "message"),
    [
        ((4, 8, 14), 4, r"strides must be powers of two, got \[4, 8, 14\] to be brought to 4"),
        ((4, 8, 16), 3, "to be brought to 3"),
        ((1, 2), 4, r"min_stride 4 leaves no map: the strides are \[1, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(strides, stride, message):
    with pytest.raises(ValueError, match=message):
        FPNDecoder([8] * len(strides), strides, 32, 32, stride=stride)


NETWORKS = {
    "resnet": small,
    "without norm": lambda: small(norm=None),
    "unet": lambda: unet_fpn(3, width=4, depth=3, pyramid_channels=8, segmentation_channels=8),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_gradients_reach_all(make):
    torch.manual_seed(0)
    network = make().train()
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_one_compiled_graph():
    network = unet_fpn(1, width=4, depth=3, pyramid_channels=8, segmentation_channels=32, stride=2)
    x = torch.rand(1, 1, 32, 32)
    compiled = torch.compile(network.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))
