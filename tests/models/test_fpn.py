from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from instseg.models.necks import FPN

CHANNELS = (8, 12, 16, 20)
STRIDES = (4, 8, 16, 32)
HALF_AND_WHOLE = (torch.bfloat16, torch.float32) * 3


def maps(height: int, width: int, channels=CHANNELS, batch: int = 2) -> list[Tensor]:
    """What a backbone gives for an image of that size: each level rounded up."""
    return [
        torch.randn(batch, c, math.ceil(height / s), math.ceil(width / s))
        for c, s in zip(channels, STRIDES, strict=False)
    ]


def randomise_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)


def with_their_weights(ours: FPN, theirs: FeaturePyramidNetwork) -> FPN:
    names = {"inner_blocks": "lateral", "layer_blocks": "output", "extra_blocks.": ""}
    state = {}
    for key, value in theirs.state_dict().items():
        for block, name in names.items():
            if key.startswith(block):
                state[key.replace(block, name)] = value
    ours.load_state_dict(state)
    return ours.eval()


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["plain", "norm"])
@pytest.mark.parametrize("size", [(64, 96), (97, 75), (33, 32)])
@torch.no_grad()
def test_equal_to_torchvision_with_its_weights(size, norm):
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelMaxPool(), norm_layer=norm).eval()
    randomise_norms(theirs)
    ours = with_their_weights(FPN(CHANNELS, STRIDES, 16, norm=norm), theirs)
    features = maps(*size)
    got = ours(features)
    wanted = list(theirs(OrderedDict((str(i), f) for i, f in enumerate(features))).values())
    assert len(got) == len(wanted) == 5
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def identity(fpn: FPN) -> FPN:
    """One channel; every convolution hands its centre pixel on."""
    for block in (*fpn.lateral, *fpn.output):
        conv = block[0]
        nn.init.zeros_(conv.weight)
        side = conv.kernel_size[0] // 2
        conv.weight.data[0, 0, side, side] = 1.0
    return fpn


@torch.no_grad()
def test_hand_worked():
    """Each level is the sum of itself and the coarser ones, repeated 2 x 2."""
    fpn = identity(FPN([1, 1, 1], [4, 8, 16], 1))
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    middle = torch.tensor([[[[100.0, 200], [300, 400]]]])
    coarse = torch.tensor([[[[1000.0]]]])
    outputs = fpn([fine, middle, coarse])
    assert [o.tolist() for o in outputs[2:]] == [[[[[1000.0]]]], [[[[1000.0]]]]]
    assert outputs[1].tolist() == [[[[1100, 1200], [1300, 1400]]]]
    assert outputs[0][0, 0].tolist() == [
        [1100, 1101, 1202, 1203],
        [1104, 1105, 1206, 1207],
        [1308, 1309, 1410, 1411],
        [1312, 1313, 1414, 1415],
    ]


@torch.no_grad()
def test_the_last_level_is_every_second_pixel():
    fpn = FPN([3], [8], 4)
    outputs = fpn([torch.randn(2, 3, 5, 6)])
    assert [o.shape for o in outputs] == [(2, 4, 5, 6), (2, 4, 3, 3)]
    assert torch.equal(outputs[1], outputs[0][:, :, ::2, ::2])


def test_channels_and_strides():
    fpn = FPN([8, 16], [8, 16], 32)
    assert fpn.channels == 32
    assert fpn.strides == [8, 16, 32]
    assert FPN(CHANNELS, STRIDES).channels == 256


def test_batch_norm_replaces_the_bias():
    plain, norm = FPN(CHANNELS, STRIDES, 8), FPN(CHANNELS, STRIDES, 8, norm=nn.BatchNorm2d)
    for fpn in (plain, norm):
        for block in (*fpn.lateral, *fpn.output):
            assert (block[0].bias is None) == (fpn is norm)
            assert [type(layer) for layer in block[1:]] == ([nn.BatchNorm2d] if fpn is norm else [])


def test_initial_weights():
    """Uniform within sqrt(3 / fan in), whose variance is 1 / fan in; biases 0."""
    fpn = FPN([256], [4], 256)
    for conv, fan_in in ((fpn.lateral[0][0], 256), (fpn.output[0][0], 256 * 9)):
        assert conv.weight.abs().max() <= math.sqrt(3 / fan_in)
        assert conv.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
        assert not conv.bias.any()


def test_every_input_and_weight_gets_a_gradient():
    fpn = FPN(CHANNELS, STRIDES, 8)
    features = [f.requires_grad_() for f in maps(64, 96)]
    # The finest output alone depends on all laterals; the others on their own convolutions.
    outputs = fpn(features)
    outputs[0].square().mean().backward(retain_graph=True)
    assert all(f.grad is not None and f.grad.any() for f in features)
    sum(o.square().mean() for o in outputs).backward()
    for name, parameter in fpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_missing_level_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        FPN([8, 8, 8], [4, 8, 16], 8)(maps(64, 64, (8, 8)))


class TestConvolvedLevels:
    """RetinaNet's: no map of stride 4, and P6 and P7 by convolutions."""

    @pytest.mark.parametrize(("extra", "in_channels"), [("conv_p5", 16), ("conv_c5", 20)])
    @pytest.mark.parametrize("size", [(64, 96), (97, 75), (1, 5)])
    @torch.no_grad()
    def test_equal_to_torchvision_with_its_weights(self, size, extra, in_channels):
        theirs = FeaturePyramidNetwork([12, 16, 20], 16, LastLevelP6P7(in_channels, 16))
        assert theirs.extra_blocks.use_P5 == (extra == "conv_p5")
        ours = with_their_weights(FPN(CHANNELS, STRIDES, 16, extra=extra, min_stride=8), theirs)
        features = maps(*size)
        got = ours(features)
        named = OrderedDict((str(i), f) for i, f in enumerate(features[1:]))
        wanted = list(theirs(named).values())
        assert len(got) == len(wanted) == 5
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)

    @torch.no_grad()
    def test_hand_worked(self):
        """Every weight 1: a pixel of P6 sums 3x3 pixels around every second one of its source."""
        for extra, source in (("conv_c5", 1.0), ("conv_p5", 10.0)):
            fpn = identity(FPN([1], [32], 1, extra=extra))
            fpn.lateral[0][0].weight.fill_(10.0)
            for conv in (fpn.p6, fpn.p7):
                nn.init.ones_(conv.weight)
            p5, p6, p7 = fpn([torch.ones(1, 1, 3, 4)])
            assert p5[0, 0].tolist() == [[10.0] * 4] * 3
            # Rows 0 and 2 see two rows of three; columns 0 and 2 see two and three columns.
            assert (p6[0, 0] / source).tolist() == [[4.0, 6.0], [4.0, 6.0]]
            assert p7[0, 0].tolist() == [[20.0 * source]]

    @torch.no_grad()
    def test_a_relu_stands_before_p7(self):
        fpn = identity(FPN([1], [32], 1, extra="conv_p5"))
        nn.init.ones_(fpn.p6.weight)
        nn.init.ones_(fpn.p7.weight)
        p6, p7 = fpn([-torch.ones(1, 1, 4, 4)])[1:]
        assert (p6 < 0).all()
        assert not p7.any()

    @pytest.mark.parametrize("extra", ["conv_c5", "conv_p5"])
    def test_strides_and_sizes(self, extra):
        fpn = FPN(CHANNELS, STRIDES, 8, extra=extra, min_stride=8)
        assert fpn.strides == [8, 16, 32, 64, 128]
        outputs = fpn(maps(256, 384))
        assert [tuple(o.shape[-2:]) for o in outputs] == [(256 // s, 384 // s) for s in fpn.strides]
        assert FPN(CHANNELS, STRIDES, 8, extra=extra).strides == [4, 8, 16, 32, 64, 128]

    @pytest.mark.parametrize("extra", ["conv_c5", "conv_p5"])
    def test_every_weight_gets_a_gradient(self, extra):
        fpn = FPN(CHANNELS, STRIDES, 8, extra=extra, min_stride=8)
        sum(o.square().mean() for o in fpn(maps(64, 96))).backward()
        for name, parameter in fpn.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name

    @pytest.mark.parametrize("extra", ["conv_c5", "conv_p5"])
    def test_bfloat16_gradients_of_maps_one_pixel_wide(self, extra):
        """Which torch's own padding leaves undefined on CPUs: whatever the memory held before."""
        fpn = FPN([64], [32], 64, extra=extra)
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(o.float().sum() for o in fpn([torch.rand(1, 64, 1, 1)]))
            held = [torch.full((64, 64, 3, 3), math.nan, dtype=d) for d in HALF_AND_WHOLE]
            del held
            fpn.zero_grad()
            loss.backward()
            for conv in (fpn.p6, fpn.p7):
                assert not conv.weight.grad[..., [0, 0, 1, 1], [0, 1, 0, 2]].any()
                assert conv.weight.grad.isfinite().all()

    def test_initial_weights(self):
        fpn = FPN([64], [32], 128, extra="conv_c5")
        for conv, fan_in in ((fpn.p6, 64 * 9), (fpn.p7, 128 * 9)):
            assert conv.weight.var().item() == pytest.approx(1 / fan_in, rel=0.05)
            assert not conv.bias.any()


def test_the_pooled_neck_has_no_further_weights():
    """Checkpoints of R-CNNs keep their names."""
    parts = [f"{i}.0.{part}" for i in range(4) for part in ("weight", "bias")]
    names = {f"{block}.{part}" for block in ("lateral", "output") for part in parts}
    assert set(FPN(CHANNELS, STRIDES, 8).state_dict()) == names


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="extra must be one of pool, conv_c5, conv_p5, got 'p6'"):
        FPN(CHANNELS, STRIDES, extra="p6")
    with pytest.raises(ValueError, match=r"min_stride 64 leaves no map: .* \[4, 8, 16, 32\]"):
        FPN(CHANNELS, STRIDES, min_stride=64)
