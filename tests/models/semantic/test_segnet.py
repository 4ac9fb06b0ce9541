"""SegNet: the paper's count, pooling indices, weights of classifiers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from instseg.models.backbones.vgg import VGG
from instseg.models.semantic.segnet import SegNet, segnet_vgg16


def narrow(num_outputs: int = 3, **settings) -> SegNet:
    return segnet_vgg16(num_outputs, **({"width": 2} | settings)).eval()


def test_parameters_are_the_papers():
    """29.45 M (Badrinarayanan et al., table of section 4) for CamVid's 11 classes."""
    encoder = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    decoder = [512, 512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64]
    expected = 0
    for channels in (encoder, decoder):
        for a, b in pairwise(channels):
            expected += 9 * a * b + b + 2 * b  # weights, biases, gain and shift of batch norm
    expected += 9 * 64 * 11 + 11
    assert expected == 29_449_355
    with torch.device("meta"):
        net = segnet_vgg16(11)
    assert sum(p.numel() for p in net.parameters()) == expected
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 13 + 13


def pooled(x: Tensor) -> tuple[Tensor, list]:
    """Max pooling by loops: the values, and for each where it was, as (b, c, y, x)."""
    values = x.numpy()
    b, c, h, w = values.shape
    small = np.zeros((b, c, h // 2, w // 2))
    places = []
    for at in np.ndindex(small.shape):
        cells = [(*at[:2], 2 * at[2] + i, 2 * at[3] + j) for i in (0, 1) for j in (0, 1)]
        best = max(cells, key=lambda cell: values[cell])
        small[at] = values[best]
        places.append((at, best))
    return torch.from_numpy(small), places


def unpooled(x: Tensor, places: list) -> Tensor:
    b, c, h, w = x.shape
    large = torch.zeros(b, c, 2 * h, 2 * w, dtype=x.dtype)
    for at, best in places:
        large[best] = x[at]
    return large


def convolved(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Tensor:
    x = F.conv2d(x, conv.weight, conv.bias, padding=1)
    if norm is None:
        return x
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)


@torch.no_grad()
def test_the_forward_pass_is_the_papers():
    net = narrow().double()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
        for tensor in (norm.bias, norm.running_mean):
            nn.init.uniform_(tensor, -0.5, 0.5)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    layers = iter([*zip(convs[:-1], norms, strict=True), (convs[-1], None)])

    image = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    x, places = image, []
    for convs_of_stage in (2, 2, 3, 3, 3):
        for _ in range(convs_of_stage):
            x = convolved(x, *next(layers))
        x, where = pooled(x)
        places.append(where)
    for convs_of_stage in (3, 3, 3, 2, 2):
        x = unpooled(x, places.pop())
        for _ in range(convs_of_stage):
            x = convolved(x, *next(layers))
    assert x.shape == (2, 3, 32, 64)
    torch.testing.assert_close(net(image), x, rtol=1e-9, atol=1e-9)


def torchvision_keys(name: str) -> set[str]:
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)().state_dict()
    return {k for k in weights if k.startswith("features.")}


def randomised(vgg: VGG) -> dict[str, Tensor]:
    return {
        k: torch.rand_like(v) if v.is_floating_point() else v for k, v in vgg.state_dict().items()
    }


def test_loads_a_classifier_with_batch_norm():
    weights = randomised(VGG(16, width=2, batch_norm=True))
    assert weights.keys() == torchvision_keys("vgg16_bn")
    net = narrow()
    net.load_classifier(weights | {"classifier.0.weight": torch.zeros(2, 2)})
    own = net.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in weights.items())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_loads_a_classifier_without_batch_norm(batch_norm):
    weights = randomised(VGG(16, width=2))
    assert weights.keys() == torchvision_keys("vgg16")
    net = narrow(batch_norm=batch_norm)
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    net.load_classifier(weights | {"classifier.0.bias": torch.zeros(2)})
    convs = [m for m in net.encoder.modules() if isinstance(m, nn.Conv2d)]
    tensors = [t for conv in convs for t in (conv.weight, conv.bias)]
    assert all(torch.equal(a, b) for a, b in zip(tensors, weights.values(), strict=True))
    norms = {k for k in before if "running" in k}
    assert len(norms) == (26 if batch_norm else 0)
    assert all(torch.equal(net.encoder.state_dict()[k], before[k]) for k in norms)


@pytest.mark.parametrize("other", [{"depth": 11}, {"depth": 16, "width": 3}], ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_other_weights_are_refused(other, batch_norm):
    with pytest.raises(ValueError, match="not of a VGG-16"):
        narrow().load_classifier(VGG(**({"width": 2} | other), batch_norm=batch_norm).state_dict())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_file_that_lacks_a_layer_is_refused(batch_norm):
    weights = VGG(16, width=2, batch_norm=batch_norm).state_dict()
    del weights["features.0.weight"]
    with pytest.raises(ValueError, match=r"no key features\.0\.weight"):
        narrow().load_classifier(weights)


def test_other_depths_mirror_their_encoder():
    encoder = VGG(11, width=2, in_channels=1)
    net = SegNet(encoder, in_channels=1, num_outputs=2, norm=None)
    # VGG-11 has 1, 1, 2, 2, 2 convolutions; of the first stage's mirror only the head is left.
    stages = [
        [(m.in_channels, m.out_channels) for m in s if hasattr(m, "weight")] for s in net.decoder
    ]
    assert stages == [
        [(16, 16), (16, 16)],
        [(16, 16), (16, 8)],
        [(8, 8), (8, 4)],
        [(4, 2)],
        [],
    ]
    assert net(torch.randn(1, 1, 64, 32)).shape == (1, 2, 64, 32)


def test_every_parameter_learns():
    net = narrow().train()
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
    assert net.head.weight.grad.abs().sum() > 0
    assert net.encoder.features[0].weight.grad.abs().sum() > 0


def test_valid_sizes_and_class_layers():
    net = narrow()
    assert [net.valid_size(n) for n in (1, 32, 33, 360)] == [32, 32, 64, 384]
    shapes = [{k: v.shape for k, v in narrow(n).state_dict().items()} for n in (2, 5)]
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {"head.weight", "head.bias"}
    assert net.class_layers == ["head.*"]


def test_compiles_in_one_graph():
    net = narrow()
    x = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
