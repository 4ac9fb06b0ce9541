"""pix2pix: the paper's networks, and that one sum of losses trains two adversaries."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.data.loader import Batch
from instseg.engine.update import Updater
from instseg.models.semantic.pix2pix import PatchDiscriminator, Pix2Pix, UNetGenerator, pix2pix
from instseg.structures.image_target import ImageTarget


def small(**settings) -> Pix2Pix:
    settings = {"depth": 3, "width": 4, "discriminator_layers": 2} | settings
    return pix2pix(**{"discriminator_width": 4} | settings)


def picture(*shape: int, channels: int = 3) -> Tensor:
    return torch.randint(256, (channels, *shape), dtype=torch.uint8)


def pairs(*sizes: tuple[int, int]) -> tuple[list[Tensor], list[ImageTarget]]:
    return [picture(*s) for s in sizes], [ImageTarget(picture(*s)) for s in sizes]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameters_are_the_papers():
    """C64-C128-C256-C512-C512-C512-C512-C512 and CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128
    (section 6.1.1; the numbers of the decoder are those that its layers read)."""
    down = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    reads = [512, 1024, 1024, 1024, 1024, 512, 256, 128]
    makes = [512, 512, 512, 512, 256, 128, 64, 3]
    generator = 16 * sum(a * b for a, b in [*pairwise(down), *zip(reads, makes, strict=True)])
    generator += 2 * (sum(down[2:8]) + sum(makes[:-1]))  # gains and shifts of batch norm
    generator += 3  # biases of the last layer
    # C64-C128-C256-C512 and the last convolution (section 6.1.2), two of them with biases.
    discriminator = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    discriminator += 2 * (128 + 256 + 512) + 64 + 1
    # As the authors' code prints: 54.414 M and 2.769 M.
    assert (generator, discriminator) == (54_413_955, 2_768_705)
    with torch.device("meta"):
        model = pix2pix()
    assert count(model.generator) == generator
    assert count(model.discriminator) == discriminator


def test_the_generator_halves_256_pixels_to_one_and_joins_skips():
    net = UNetGenerator(width=1).eval()
    shapes = []
    for layer in [*net.down, *net.up]:
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert net(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    widths = [1, 2, 4, 8, 8, 8, 8, 8]
    assert shapes[:8] == [(w, 2**n, 2**n) for w, n in zip(widths, range(7, -1, -1), strict=True)]
    assert shapes[8:15] == [
        (w, 2**n, 2**n) for w, n in zip(widths[-2::-1], range(1, 8), strict=True)
    ]
    dropouts = [any(isinstance(m, nn.Dropout) for m in up) for up in net.up]
    assert dropouts == [True] * 3 + [False] * 5


@torch.no_grad()
def test_the_generators_forward_pass_is_the_papers():
    net = UNetGenerator(2, 1, depth=3, width=2).double().eval()
    w = net.state_dict()

    def normalised(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            x, *(w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        )

    x = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    e1 = F.conv2d(x, w["down.0.weight"], stride=2, padding=1)
    e2 = F.conv2d(F.leaky_relu(e1, 0.2), w["down.1.1.weight"], stride=2, padding=1)
    e2 = normalised(e2, "down.1.2")
    e3 = F.conv2d(F.leaky_relu(e2, 0.2), w["down.2.1.weight"], stride=2, padding=1)
    d1 = F.conv_transpose2d(e3.relu(), w["up.0.1.weight"], stride=2, padding=1)
    d1 = torch.cat([normalised(d1, "up.0.2"), e2], 1)
    d2 = F.conv_transpose2d(d1.relu(), w["up.1.1.weight"], stride=2, padding=1)
    d2 = torch.cat([normalised(d2, "up.1.2"), e1], 1)
    d3 = F.conv_transpose2d(d2.relu(), w["up.2.1.weight"], w["up.2.1.bias"], stride=2, padding=1)
    torch.testing.assert_close(net(x), d3.tanh(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (3, 70), (5, 286)])
def test_a_logit_of_the_discriminator_sees_its_patch(layers, patch):
    net = PatchDiscriminator(2, layers=layers, width=1).double().eval()
    for p in net.parameters():
        nn.init.constant_(p, 0.1)  # so that nothing cancels
    side = patch + 34
    x = torch.ones(1, 2, side, side, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    for axis in (0, 1):
        assert (x.grad[0].abs().sum(0).sum(axis) > 0).sum() == patch


def test_the_discriminator_of_256_pixels_gives_30_logits():
    with torch.device("meta"):
        assert PatchDiscriminator()(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_least_size_of_the_discriminator(layers):
    net = PatchDiscriminator(2, layers=layers, width=2)
    assert net.train()(torch.randn(1, 2, net.min_size, net.min_size)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net.eval()(torch.randn(1, 2, net.min_size - 1, net.min_size - 1))


def test_weights_start_from_a_normal_distribution():
    model = pix2pix(depth=5, width=16, discriminator_width=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            assert module.weight.mean().abs() < 0.001
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if getattr(module, "bias", None) is not None:
            assert torch.count_nonzero(module.bias) == 0
    gains = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.2)


def in_tanh_range(pictures: list[Tensor]) -> Tensor:
    return torch.stack([p.double() / 127.5 - 1 for p in pictures])


def bce(logits: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_one_sum_has_the_gradients_of_two_objectives(norm):
    model = small(norm=norm, dropout=0.5).double().train()
    for norm_layer in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm_layer.weight, 0.5, 1.5)
    two = copy.deepcopy(model)
    images, targets = pairs((16, 24), (16, 24))
    torch.manual_seed(7)
    losses = model(images, targets)
    sum(losses.values()).backward()

    x, y = in_tanh_range(images), in_tanh_range([t.image for t in targets])
    torch.manual_seed(7)
    fake = two.generator(x)
    # The discriminator's objective; its running figures come from these two passes alone.
    of_real = two.discriminator(torch.cat([x, y], 1))
    of_fake = two.discriminator(torch.cat([x, fake.detach()], 1))
    objective_d = 0.5 * (bce(of_real, 1.0) + bce(of_fake, 0.0))
    gradients_d = torch.autograd.grad(objective_d, list(two.discriminator.parameters()))
    buffers = {k: b.clone() for k, b in two.named_buffers()}
    # The generator's.
    gan = bce(two.discriminator(torch.cat([x, fake], 1)), 1.0)
    l1 = 100 * (fake - y).abs().mean()
    gradients_g = torch.autograd.grad(gan + l1, list(two.generator.parameters()))

    # Losses are float32 scalars, and the gradients pass through that.
    for name, expected in (("gan", gan), ("l1", l1), ("discriminator", objective_d)):
        assert losses[f"loss_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)
    for network, gradients in (
        (model.discriminator, gradients_d),
        (model.generator, gradients_g),
    ):
        for p, expected in zip(network.parameters(), gradients, strict=True):
            assert expected.abs().sum() > 0
            torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-7)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-6, atol=1e-9)
    tracked = [b for k, b in model.discriminator.named_buffers() if "tracked" in k]
    assert all(b == 2 for b in tracked)
    assert bool(tracked) == (norm == "batch")


def test_one_step_moves_both_as_two_optimizers_would():
    model = small(dropout=0.0)
    two = copy.deepcopy(model)
    images, targets = pairs((16, 16), (16, 16))
    adam = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    updater = Updater(model, adam, amp=None, clip_norm=None, ema_decay=None)
    batch = Batch(images, targets, [1, 2], [(16, 16)] * 2, ["a", "b"])
    gradient = updater.compute_gradient({0: batch}, [2], step=0)
    updater.apply()
    assert set(gradient.means) == {"loss", "loss_gan", "loss_l1", "loss_discriminator"}
    assert math.isfinite(gradient.norm)

    losses = two(images, targets)
    for network, names in (
        (two.generator, ("loss_gan", "loss_l1")),
        (two.discriminator, ("loss_discriminator",)),
    ):
        parameters = list(network.parameters())
        loss = sum(losses[n] for n in names)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999)).step()
    for own, expected in zip(model.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)


def test_images_of_any_size_are_mirrored_and_cut():
    model = small(norm="instance").eval()
    images = [picture(21, 30), picture(5, 3)]
    with torch.inference_mode():
        made = model(images)
        for image, target in zip(images, made, strict=True):
            # 24 = 3 * 2**3 is a multiple of 8, as is 32.
            room = [(0, 0), (0, 24 - image.shape[1]), (0, 32 - image.shape[2])]
            padded = np.pad(image.numpy(), room, mode="reflect")
            alone = model.generator(in_tanh_range([torch.from_numpy(padded)]).float())[0]
            expected = (alone[:, : image.shape[1], : image.shape[2]] + 1) / 2
            assert isinstance(target, ImageTarget)
            assert target.image_size == tuple(image.shape[1:])
            assert target.image.dtype == torch.float32
            assert 0 <= target.image.min() <= target.image.max() <= 1
            torch.testing.assert_close(target.image, expected, rtol=0, atol=1e-5)


def test_valid_sizes_suit_both_networks():
    assert [pix2pix(depth=2, width=1).valid_size(n) for n in (1, 24, 25)] == [24, 24, 28]
    assert [small().valid_size(n) for n in (1, 13, 17)] == [16, 16, 24]


def test_l1_of_mixed_sizes_counts_own_pixels():
    model = small(norm="instance", dropout=0.0, l1_weight=7.0)
    images, targets = pairs((24, 24), (9, 17))
    loss = model.train()(images, targets)["loss_l1"].item()
    made = model.eval()(images)
    errors = [(m.image - t.image / 255).abs().mean() for m, t in zip(made, targets, strict=True)]
    # Values in [-1, 1] differ by twice as much as those in [0, 1].
    assert loss == pytest.approx(7 * 2 * (sum(errors) / 2).item(), rel=1e-5)


def test_dropout_at_test_time_is_a_choice():
    image = [picture(16, 16)]
    for keeps, model in ((False, small()), (True, small(test_dropout=True))):
        model.eval()
        first, second = (model(image)[0].image for _ in range(2))
        assert torch.equal(first, second) != keeps
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_depths_of_colour():
    model = small(in_channels=1, out_channels=2).eval()
    eight = picture(16, 16, channels=1)
    sixteen = (eight.to(torch.int32) * 257).to(torch.uint16)
    with torch.inference_mode():
        made = [model([i])[0].image for i in (eight, sixteen, eight.float() / 255)]
    assert made[0].shape == (2, 16, 16)
    torch.testing.assert_close(made[1], made[0])
    torch.testing.assert_close(made[2], made[0])
    target = ImageTarget((picture(16, 16, channels=2).int() * 257).to(torch.uint16))
    assert all(loss.isfinite() for loss in model.train()([sixteen], [target]).values())


def test_has_no_layers_of_classes():
    assert not any(small().class_layers)


def test_networks_compile_in_one_graph():
    model = small().eval()
    x = torch.randn(1, 3, 16, 24)
    both = torch.randn(1, 6, 16, 24)
    with torch.inference_mode():
        for network, inputs in ((model.generator, x), (model.discriminator, both)):
            torch._dynamo.reset()
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            assert torch.equal(compiled(inputs), network(inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"discriminator_layers": 0}, "layers must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be 'batch' or 'instance', got 'layer'"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_bad_pairs():
    model = small()
    images, targets = pairs((16, 16), (16, 16))
    with pytest.raises(ValueError, match="at least one image"):
        model([])
    with pytest.raises(ValueError, match="2 images but 1 targets"):
        model(images, targets[:1])
    with pytest.raises(ValueError, match=r"image 1 is \(16, 16\) .* its target is for \(8, 16\)"):
        model(images, [targets[0], ImageTarget(picture(8, 16))])
    with pytest.raises(ValueError, match="target 1 has 1 channels, the generator makes 3"):
        model(images, [targets[0], ImageTarget(picture(16, 16, channels=1))])
    with pytest.raises(ValueError, match=r"images must be \[3, H, W\], got \[1, 16, 16\]"):
        model([picture(16, 16, channels=1)])
