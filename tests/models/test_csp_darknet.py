"""CSPDarknet and its neck: the layers against their definitions, shapes, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instseg.models.backbones.csp_darknet import (
    Bottleneck,
    ConvBlock,
    CSPDarknet,
    CSPStage,
    SPPBottleneck,
)
from instseg.models.necks.pafpn import PAFPN


@torch.no_grad()
def test_the_stem_is_a_3x3_convolution_over_blocks_of_2x2_pixels():
    """Output (y, x) sees the 3x3 blocks around block (y, x), nothing outside the image."""
    conv = CSPDarknet(0.33, 0.125).stem.conv
    image = torch.randn(1, 3, 12, 16)
    got = conv(image)
    assert got.shape == (1, 8, 6, 8)
    # The weight of a pixel (dy, dx) of block (i, j) stands at row 2i + dy, column 2j + dx.
    weight = conv.weight.reshape(8, 3, 3, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(8, 12, 3, 3)
    blocks = torch.cat([image[..., dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=1)
    assert torch.allclose(got, F.conv2d(blocks, weight, padding=1), atol=1e-5)


@torch.no_grad()
def test_pooling_three_times_is_pooling_5_9_and_13():
    block = SPPBottleneck(8, 6).eval()
    x = torch.randn(2, 8, 17, 15)
    hidden = block.reduce(x)
    pools = [F.max_pool2d(hidden, k, stride=1, padding=k // 2) for k in (5, 9, 13)]
    assert torch.equal(block(x), block.merge(torch.cat([hidden, *pools], dim=1)))


@torch.no_grad()
def test_a_stage_splits_and_joins():
    stage = CSPStage(8, 12, 2).eval()
    x = torch.randn(1, 8, 5, 5)
    y = stage.main(x)
    for block in stage.blocks:
        y = y + block.spatial(block.reduce(y))
    assert torch.allclose(stage(x), stage.merge(torch.cat([y, stage.bypass(x)], dim=1)), atol=1e-6)
    plain = Bottleneck(8, shortcut=False, depthwise=True).eval()
    assert torch.equal(plain(x), plain.spatial(plain.reduce(x)))


def test_a_block_normalises_as_published():
    block = ConvBlock(4, 6, 3)
    assert block.conv.bias is None
    assert (block.norm.eps, block.norm.momentum) == (1e-3, 0.03)
    assert isinstance(block.act, nn.SiLU)


@pytest.mark.parametrize("depthwise", [False, True])
def test_maps_and_gradients(depthwise):
    backbone = CSPDarknet(0.33, 0.125, depthwise=depthwise)
    neck = PAFPN(backbone.channels, backbone.strides, depth=0.33, depthwise=depthwise)
    assert backbone.channels == neck.channels == [32, 64, 128]
    assert backbone.strides == neck.strides == [8, 16, 32]
    maps = neck(backbone(torch.randn(2, 3, 64, 96)))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
    sum(m.square().sum() for m in maps).backward()
    for part in (backbone, neck):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("depth", "blocks"), [(0.33, [1, 3, 3, 1]), (0.67, [2, 6, 6, 2]), (1.33, [4, 12, 12, 4])]
)
def test_depth(depth, blocks):
    """The published multiples of 3, 9, 9, 3 bottlenecks; only the last stage has no shortcuts."""
    backbone = CSPDarknet(depth, 0.125)
    stages = [backbone.stage2[-1], backbone.stage3[-1], backbone.stage4[-1], backbone.stage5[-1]]
    assert [len(s.blocks) for s in stages] == blocks
    assert [s.blocks[0].shortcut for s in stages] == [True, True, True, False]
    neck = PAFPN([8, 16, 32], [8, 16, 32], depth=depth)
    assert len(neck.top_down3.blocks) == blocks[0]
    assert not neck.top_down3.blocks[0].shortcut


@torch.no_grad()
def test_channels_last_gives_the_same():
    backbone = CSPDarknet(0.33, 0.125, depthwise=True).eval()
    image = torch.randn(1, 3, 64, 64)
    plain = backbone(image)
    last = backbone.to(memory_format=torch.channels_last)(
        image.contiguous(memory_format=torch.channels_last)
    )
    for a, b in zip(plain, last, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
        assert b.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_its_own_shape_alone():
    backbone, same = CSPDarknet(0.33, 0.125), CSPDarknet(0.33, 0.125)
    same.load_classifier(backbone.state_dict())
    assert torch.equal(same.stem.conv.weight, backbone.stem.conv.weight)
    with pytest.raises(ValueError, match=r"not of this CSPDarknet: stem.conv.weight is \[16, 3"):
        same.load_classifier(CSPDarknet(0.33, 0.25).state_dict())


@pytest.mark.parametrize(
    ("depth", "width", "message"),
    [
        (0.0, 1.0, r"must be positive, got 0.0 and 1.0"),
        (1.0, -1.0, r"must be positive, got 1.0 and -1.0"),
        (1.0, 0.02, r"64 \* width an even number, got 0.02"),
        (1.0, 0.08, r"64 \* width an even number, got 0.08"),
    ],
)
def test_bad_sizes_are_named(depth, width, message):
    with pytest.raises(ValueError, match=message):
        CSPDarknet(depth, width)


def test_a_neck_of_two_maps_is_refused():
    with pytest.raises(ValueError, match=r"three maps, got channels \[8, 16\]"):
        PAFPN([8, 16], [8, 16])
