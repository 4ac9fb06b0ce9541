"""FCN: the paper's counts, bilinear upsampling, dense layers as convolutions, the skips."""

from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones import ResNet
from instseg.models.backbones.vgg import VGG
from instseg.models.semantic.fcn import (
    FCN,
    BilinearUpsampling,
    bilinear_deconvolution,
    bilinear_kernel,
    fcn_vgg16,
)

STRIDES = (8, 16, 32)


def narrow(num_outputs: int = 3, **settings) -> FCN:
    """Small, with random instead of zero scores."""
    net = fcn_vgg16(num_outputs, **({"width": 2, "hidden": 5} | settings))
    for layer in (net.score, *net.skip_scores):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return net.eval()


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameters_are_the_papers():
    # VGG-16's convolutions (Simonyan and Zisserman, configuration D), 3 x 3 weights and biases.
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    vgg = sum(9 * a * b + b for a, b in pairwise(channels))
    assert vgg == 14_714_688
    fc6, fc7 = 7 * 7 * 512 * 4096 + 4096, 4096 * 4096 + 4096
    score, score4, score3 = 4096 * 21 + 21, 512 * 21 + 21, 256 * 21 + 21
    upsampling, last = 21 * 21 * 4 * 4, 21 * 21 * 16 * 16
    fcn32 = vgg + fc6 + fc7 + score
    fcn16 = fcn32 + upsampling + score4
    fcn8 = fcn16 + upsampling + score3
    assert (fcn32, fcn16, fcn8, fcn8 + last) == (134_346_581, 134_364_410, 134_376_863, 134_489_759)
    with torch.device("meta"):
        for stride, expected in ((32, fcn32), (16, fcn16), (8, fcn8)):
            assert count(fcn_vgg16(21, stride=stride)) == expected
        assert count(fcn_vgg16(21, learn_upsampling=True)) == fcn8 + last


def test_the_kernel_of_factor_two_by_hand():
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(2), line[:, None] * line)


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_is_exact_on_a_linear_ramp(factor, learned):
    up = (bilinear_deconvolution(2, factor) if learned else BilinearUpsampling(factor)).double()

    def ramp(height: int, width: int, step: float) -> Tensor:
        """Two linear functions of the centres of pixels that are ``step`` wide."""
        y = (torch.arange(height).double()[:, None] + 0.5) * step
        x = (torch.arange(width).double() + 0.5) * step
        return torch.stack([3 + 0.5 * y - 0.25 * x, x + 2 * y])[None]

    found = up(ramp(4, 5, float(factor)))
    expected = ramp(4 * factor, 5 * factor, 1.0)
    assert found.shape == expected.shape
    edge = factor // 2
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=1e-10)
    # At the edge a neighbour counts as 0: the corner is (1/2 + 1/(2 factor))^2 of the first value.
    share = 0.5 + 0.5 / factor
    torch.testing.assert_close(
        found[0, :, 0, 0], ramp(1, 1, float(factor))[0, :, 0, 0] * share**2, rtol=0, atol=1e-10
    )


def test_upsampling_is_torchs_bilinear_inside():
    x = torch.randn(2, 3, 6, 7)
    expected = F.interpolate(x, scale_factor=8, mode="bilinear", align_corners=False)
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(BilinearUpsampling(8)(x)[inner], expected[inner])


def by_the_paper(net: FCN, x: Tensor, stride: int) -> Tensor:
    """The forward pass written out, from the weights alone."""
    w = net.state_dict()
    convs = [k.removesuffix(".weight") for k in w if k.startswith("encoder.") and "weight" in k]
    pools, names = {}, iter(convs)
    for stage, number in enumerate((2, 2, 3, 3, 3), start=1):
        for name in (next(names) for _ in range(number)):
            x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1).clamp(min=0)
        pools[stage] = x = F.max_pool2d(x, 2)
    x = F.conv2d(x, w["fc6.weight"], w["fc6.bias"], padding=3).clamp(min=0)
    x = F.conv2d(x, w["fc7.weight"], w["fc7.bias"]).clamp(min=0)
    x = F.conv2d(x, w["score.weight"], w["score.bias"])
    for i, stage in enumerate((4, 3)[: {32: 0, 16: 1, 8: 2}[stride]]):
        x = F.conv_transpose2d(x, w[f"upsamplings.{i}.weight"], stride=2, padding=1)
        x = x + F.conv2d(pools[stage], w[f"skip_scores.{i}.weight"], w[f"skip_scores.{i}.bias"])
    # Bilinear with zeros around: enlarge with a border of zeros and cut it off again.
    x = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=stride, mode="bilinear")
    return x[..., stride:-stride, stride:-stride]


@pytest.mark.parametrize("stride", STRIDES)
def test_the_forward_pass_is_the_papers(stride):
    net = narrow(stride=stride).double()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        found = net(x)
        assert found.shape == (2, 3, 64, 96)
        torch.testing.assert_close(found, by_the_paper(net, x, stride), rtol=1e-9, atol=1e-9)


def test_all_scores_start_at_zero():
    net = fcn_vgg16(4, width=2, hidden=5)
    assert torch.count_nonzero(net(torch.randn(1, 3, 32, 32))) == 0


class Classifier(nn.Module):
    """VGG-16 as torchvision has it, but narrow."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.features = VGG(16, width=2).features
        self.classifier = nn.Sequential(
            nn.Linear(16 * 7 * 7, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, 10),
        )


def test_dense_layers_become_convolutions():
    classifier, net = Classifier().eval(), narrow(hidden=6)
    for layer in classifier.classifier[::3]:
        nn.init.normal_(layer.bias)
    net.load_classifier(classifier.state_dict())
    seen: list[Tensor] = []
    net.score.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        net(image)
        expected = classifier.classifier[:5](classifier.features(image).flatten(1))
    # The middle one of the 7 x 7 windows of fc6 is the whole image's.
    assert seen[0].shape == (1, 6, 7, 7)
    torch.testing.assert_close(seen[0][..., 3, 3], expected)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("what", ["absent", "nan"])
def test_a_file_without_dense_layers_leaves_them_as_they_are(what):
    net = narrow(hidden=6)
    before = net.fc6.weight.clone()
    weights = Classifier().state_dict()
    if what == "absent":
        weights = {k: v for k, v in weights.items() if k.startswith("features.")}
    else:
        weights |= {k: v * torch.nan for k, v in weights.items() if k.startswith("classifier.")}
    net.load_classifier(weights)
    assert torch.equal(net.fc6.weight, before)
    assert torch.equal(net.encoder.features[0].weight, weights["features.0.weight"])


def test_weights_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"fc6\.weight is \[7, 16, 7, 7\] there and \[6, 16"):
        narrow(hidden=6).load_classifier(Classifier(hidden=7).state_dict())
    weights = Classifier().state_dict() | {"classifier.0.weight": torch.zeros(6, 100)}
    with pytest.raises(ValueError, match=r"classifier\.0\.weight is \[6, 100\]"):
        narrow(hidden=6).load_classifier(weights)
    with pytest.raises(ValueError, match="not of a VGG-16"):
        narrow().load_classifier(VGG(11, width=2).state_dict())


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_class_layers_are_the_parameters_that_depend_on_the_classes(learned):
    few, many = (
        {k: v.shape for k, v in narrow(n, learn_upsampling=learned).named_parameters()}
        for n in (2, 5)
    )
    patterns = narrow().class_layers
    of_classes = {k for k in few if any(fnmatchcase(k, p) for p in patterns)}
    assert {k for k in few if few[k] != many[k]} == of_classes
    assert ("final.weight" in few) == learned


def test_every_parameter_learns():
    net = narrow(learn_upsampling=True).train()
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_valid_sizes():
    net = narrow()
    assert [net.valid_size(n) for n in (1, 32, 33, 500)] == [32, 32, 64, 512]
    assert net.output_size(64) == 64


def test_other_encoders_and_channels():
    assert narrow(in_channels=1, batch_norm=True)(torch.randn(1, 1, 32, 64)).shape == (1, 3, 32, 64)
    net = FCN(ResNet(18), in_channels=3, num_outputs=2, hidden=4)
    assert net(torch.randn(1, 3, 64, 32)).shape == (1, 2, 64, 32)
    assert [layer.in_channels for layer in net.skip_scores] == [256, 128]


def test_compiles_in_one_graph():
    net = narrow()
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_bad_arguments():
    with pytest.raises(ValueError, match="stride must be 8, 16 or 32, got 4"):
        narrow(stride=4)
    encoder = VGG(16, width=2)
    encoder.strides = [1, 2, 4, 8, 15, 32]
    with pytest.raises(ValueError, match="FCN-16s needs an encoder with a map of stride 16"):
        FCN(encoder, in_channels=3, num_outputs=2, stride=16)
