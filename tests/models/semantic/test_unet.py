from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones import ResNet, TimmBackbone
from instseg.models.backbones.unet import ContractingPath
from instseg.models.backbones.vgg import VGG
from instseg.models.fuse import fold_batch_norm
from instseg.models.semantic.decoders import UNetDecoder
from instseg.models.semantic.network import EncoderDecoder
from instseg.models.semantic.unet import UNet, unet

RESNET_STRIDES = (2, 4, 8, 16, 32)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomise_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1)
            nn.init.normal_(norm.bias, std=0.2)


def randomise_biases(module: nn.Module) -> None:
    """Convolutions start with bias 0, under which a forgotten one would stay unseen."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, std=0.1)


def small_unet(padding: str = "same", **options) -> UNet:
    torch.manual_seed(0)
    return UNet(1, 2, **{"width": 4, "depth": 2, "padding": padding, **options})


def resnet_unet(**options) -> EncoderDecoder:
    torch.manual_seed(0)
    encoder = ResNet(18, norm="live", freeze_at=0, strides=RESNET_STRIDES)
    return unet(encoder, 2, decoder_channels=(16, 8, 8, 4, 4), **options)


class TestPaper:
    def test_figure_1_shapes(self):
        with torch.device("meta"):
            network = UNet()
            maps = network.encoder(torch.zeros(1, 1, 572, 572))
            logits = network(torch.zeros(1, 1, 572, 572))
        # The sides after the second convolution of each level, as the figure has them.
        assert [tuple(m.shape[1:]) for m in maps] == [
            (64, 568, 568),
            (128, 280, 280),
            (256, 136, 136),
            (512, 64, 64),
            (1024, 28, 28),
        ]
        assert logits.shape == (1, 2, 388, 388)
        assert network.valid_size(572) == 572
        assert network.output_size(572) == 388
        assert network.border == 92

    def test_figure_1_parameters(self):
        def conv(a: int, b: int, k: int = 3) -> int:
            return a * b * k * k + b

        down = (  # 37,568 + 221,440 + 885,248 + 3,539,968 + 14,157,824
            conv(1, 64) + conv(64, 64)
            + conv(64, 128) + conv(128, 128)
            + conv(128, 256) + conv(256, 256)
            + conv(256, 512) + conv(512, 512)
            + conv(512, 1024) + conv(1024, 1024)
        )  # fmt: skip
        up = (  # the up-convolution, then two on twice its channels, the half of them copied
            conv(1024, 512, 2) + conv(1024, 512) + conv(512, 512)
            + conv(512, 256, 2) + conv(512, 256) + conv(256, 256)
            + conv(256, 128, 2) + conv(256, 128) + conv(128, 128)
            + conv(128, 64, 2) + conv(128, 64) + conv(64, 64)
        )  # fmt: skip
        head = conv(64, 2, 1)
        assert (down, up, head) == (18_842_048, 12_188_480, 130)
        with torch.device("meta"):
            for padding in ("valid", "same"):
                assert parameters(UNet(padding=padding)) == 31_030_658 == down + up + head

    def test_forward_is_the_figures(self):
        """The figure once more, as a plain sequence of operations in float64."""
        network = small_unet("valid").double()
        randomise_biases(network)
        weights = network.state_dict()

        def two_convs(x: Tensor, path: str) -> Tensor:
            for i in (0, 2):
                x = F.conv2d(x, weights[f"{path}.{i}.weight"], weights[f"{path}.{i}.bias"]).relu()
            return x

        def up(x: Tensor, path: str) -> Tensor:
            # Each pixel becomes 2x2 pixels of half the channels.
            out = torch.einsum("bchw,cdij->bdhiwj", x, weights[f"{path}.weight"])
            return out.flatten(4).flatten(2, 3) + weights[f"{path}.bias"][:, None, None]

        x = torch.rand(2, 1, 52, 60, dtype=torch.float64)
        first = two_convs(x, "encoder.levels.0")  # 48 x 56
        second = two_convs(F.max_pool2d(first, 2), "encoder.levels.1")  # 20 x 24
        third = two_convs(F.max_pool2d(second, 2), "encoder.levels.2")  # 6 x 8
        joined = torch.cat([second[..., 4:-4, 4:-4], up(third, "decoder.up.0")], 1)  # 12 x 16
        above = two_convs(joined, "decoder.levels.0")  # 8 x 12
        joined = torch.cat([first[..., 16:-16, 16:-16], up(above, "decoder.up.1")], 1)  # 16 x 24
        last = two_convs(joined, "decoder.levels.1")  # 12 x 20
        wanted = F.conv2d(last, weights["head.weight"], weights["head.bias"])
        assert wanted.shape == (2, 2, 12, 20)
        torch.testing.assert_close(network(x), wanted)

    def test_he_initialisation(self):
        """Section 3: N is the incoming nodes of one neuron, e.g. 9 * 64 for a 3x3 convolution."""
        torch.manual_seed(0)
        network = UNet(width=32, depth=2)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nodes = module.in_channels * module.kernel_size[0] ** 2
            elif isinstance(module, nn.ConvTranspose2d):
                nodes = module.in_channels  # a 2x2 kernel of stride 2: one tap a pixel
            else:
                continue
            std = math.sqrt(2 / nodes)
            tolerance = 4 / math.sqrt(2 * module.weight.numel())  # four standard errors
            assert module.weight.std().item() == pytest.approx(std, rel=tolerance)
            assert module.bias.count_nonzero() == 0

    @pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
    def test_valid_sizes(self, depth):
        """Walk the figure with every side: odd sides cannot be pooled, none may fall to nothing."""

        def logits_side(side: int) -> int | None:
            for _ in range(depth):
                side -= 4
                if side <= 0 or side % 2:
                    return None
                side //= 2
            side -= 4
            for _ in range(depth):
                side = 2 * side - 4
                if side <= 0:
                    return None
            return side

        with torch.device("meta"):
            network = UNet(width=1, depth=depth)
        wanted = {s: out for s in range(900) if (out := logits_side(s)) is not None}
        for size in range(400):
            valid = network.valid_size(size)
            assert valid == min(s for s in wanted if s >= size)
            assert network.output_size(valid) == wanted[valid]
        with torch.device("meta"):
            side = network.valid_size(0)
            logits = network(torch.zeros(1, 1, side, side + 2**depth))
        assert logits.shape[-2:] == (wanted[side], wanted[side + 2**depth])

    def test_tiles_of_a_mirrored_image_have_its_logits(self):
        for depth, step, tile in ((2, 12, 52), (4, 32, 204)):
            network = small_unet("valid", depth=depth)
            randomise_biases(network)
            border, out = network.border, network.output_size(tile)
            side = network.valid_size(tile + 2 * step)
            image = torch.rand(1, 1, side - 2 * border, side - 2 * border)
            # Twice half the border: one reflection cannot be wider than the image.
            for _ in range(2):
                image = F.pad(image, (border // 2,) * 4, mode="reflect")
            assert image.shape[-1] == side
            with torch.no_grad():
                whole = network(image)
                for top, left in ((0, 0), (0, step), (2 * step, step), (step, 2 * step)):
                    part = network(image[..., top : top + tile, left : left + tile])
                    wanted = whole[..., top : top + out, left : left + out]
                    torch.testing.assert_close(part, wanted, atol=1e-5, rtol=0)
                # The poolings' grid: other offsets give other logits.
                moved = network(image[..., 1 : 1 + tile, 1 : 1 + tile])
            assert (moved - whole[..., 1 : 1 + out, 1 : 1 + out]).abs().max() > 1e-3

    def test_dropout_at_the_end_of_the_contracting_path(self):
        encoder = ContractingPath(width=8, depth=3, dropout=0.5).train()
        x = torch.rand(1, 1, 64, 64)
        first, second = encoder(x), encoder(x)
        for a, b in zip(first[:2], second[:2], strict=True):
            torch.testing.assert_close(a, b)
        encoder.eval()
        dense = encoder(x)[2]
        # The map before the last: half of what is not zero anyhow is dropped, the rest doubled.
        alive = dense > 0
        kept = first[2][alive] > 0
        assert kept.float().mean().item() == pytest.approx(0.5, abs=0.1)
        torch.testing.assert_close(first[2][alive][kept], 2 * dense[alive][kept])
        assert (first[3] != second[3]).any()
        torch.testing.assert_close(encoder(x), encoder(x))


class TestPadded:
    @pytest.mark.parametrize("up", ["transposed", "bilinear"])
    @pytest.mark.parametrize("attention", [False, True])
    @pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
    def test_logits_have_the_images_size(self, up, attention, norm):
        network = small_unet(up=up, attention=attention, norm=norm)
        assert network(torch.rand(2, 1, 24, 36)).shape == (2, 2, 24, 36)
        assert [network.valid_size(n) for n in (1, 4, 5, 33)] == [4, 4, 8, 36]
        assert network.border == 0
        assert network.output_size(36) == 36

    def test_bilinear_upsampling_comes_before_its_convolution(self):
        network = small_unet(up="bilinear")
        randomise_biases(network)
        conv = network.decoder.up[0][0]
        x = torch.rand(1, 16, 5, 6)
        wanted = conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
        torch.testing.assert_close(network.decoder.up[0](x), wanted)

    def test_an_open_gate_changes_nothing(self):
        plain, gated = small_unet(), small_unet(attention=True)
        assert gated.load_state_dict(plain.state_dict(), strict=False).missing_keys
        for gate in gated.decoder.gates:
            nn.init.constant_(gate.score.bias, 100.0)
        x = torch.rand(1, 1, 16, 16)
        torch.testing.assert_close(gated(x), plain(x))
        for gate in gated.decoder.gates:
            nn.init.constant_(gate.score.bias, 0.0)
        assert (gated(x) - plain(x)).abs().max() > 1e-3

    def test_state_dict_of_the_contracting_path(self):
        a, b = ContractingPath(width=4, depth=2), ContractingPath(width=4, depth=2)
        b.load_classifier(a.state_dict())
        x = torch.rand(1, 1, 16, 16)
        torch.testing.assert_close(a(x), b(x))
        with pytest.raises(ValueError, match="not of this U-Net's contracting path"):
            b.load_classifier(ContractingPath(width=8, depth=2).state_dict())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": "full"}, "padding must be 'valid' or 'same', got 'full'"),
            ({"up": "nearest"}, "up must be one of transposed, bilinear, got 'nearest'"),
            ({"padding": "valid", "up": "bilinear"}, "up='bilinear' .* unpadded convolutions"),
            ({"padding": "valid", "attention": True}, "attention=True do not go with unpadded"),
            ({"depth": 0}, "depth must be at least 1, got 0"),
            ({"width": 0}, "width must be at least 1, got 0"),
            ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ],
    )
    def test_unknown_options_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            small_unet(**options)


class TestEncoders:
    def test_a_resnets_stem_map(self):
        torch.manual_seed(0)
        four = ResNet(18).eval()
        five = ResNet(18, strides=RESNET_STRIDES).eval()
        randomise_norms(four)
        five.load_state_dict(four.state_dict())
        assert four.strides == [4, 8, 16, 32]
        assert five.strides == [2, 4, 8, 16, 32]
        assert five.channels == [64, 64, 128, 256, 512]
        x = torch.rand(1, 3, 64, 64)
        stem, *others = five(x)
        assert stem.shape == (1, 64, 32, 32)
        torch.testing.assert_close(stem, four.bn1(four.conv1(x)).relu())
        torch.testing.assert_close(others, four(x))
        some = ResNet(18, strides=(2, 8, 32)).eval()
        some.load_state_dict(four.state_dict())
        assert some.channels == [64, 128, 512]
        torch.testing.assert_close(some(x), [stem, others[1], others[3]])

    @pytest.mark.parametrize("strides", [(4, 8, 16), (8, 4, 32), (1, 2, 32), (4, 4, 32), ()])
    def test_a_resnets_unknown_strides_are_refused(self, strides):
        with pytest.raises(ValueError, match=r"strides must rise, be among \[2, 4, 8, 16, 32\]"):
            ResNet(18, strides=strides)

    @pytest.mark.parametrize("encoder", [ResNet(18, in_channels=5), VGG(11, in_channels=5)])
    def test_channels_of_the_images(self, encoder):
        assert encoder.in_channels == 5
        maps = encoder(torch.rand(1, 5, 32, 32))
        assert [m.shape[1] for m in maps] == encoder.channels
        three = type(encoder)(encoder.depth).state_dict()
        with pytest.raises(ValueError, match=r", 3, \d, \d\] there and \[64, 5,"):
            encoder.load_classifier(three)

    @pytest.mark.parametrize(
        ("encoder", "channels"),
        [
            (lambda: ResNet(18, strides=RESNET_STRIDES), (8, 8, 8, 8, 8)),
            (lambda: ResNet(18), (8, 8, 8, 8, 8)),
            (lambda: VGG(11, width=8), (8, 8, 8, 8, 8)),
            (lambda: ContractingPath(3, width=4, depth=3), (8, 8, 8)),
            (lambda: TimmBackbone("lcnet_050", strides=RESNET_STRIDES), (8, 8, 8, 8, 8)),
        ],
    )
    def test_logits_have_the_images_size(self, encoder, channels):
        network = unet(encoder(), 3, decoder_channels=channels, attention=True).eval()
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)
        assert network.valid_size(33) == 2 ** len(channels) * -(-33 // 2 ** len(channels))
        assert network.border == 0

    @pytest.mark.parametrize("depth", [18, 34])
    def test_parameters_are_smps(self, depth):
        smp = pytest.importorskip("segmentation_models_pytorch")
        with torch.device("meta"):
            theirs = smp.Unet(f"resnet{depth}", encoder_weights=None, in_channels=3, classes=2)
            ours = unet(ResNet(depth, strides=RESNET_STRIDES), 2)
        assert parameters(ours) == parameters(theirs)

    def test_logits_are_smps(self):
        smp = pytest.importorskip("segmentation_models_pytorch")
        torch.manual_seed(0)
        channels = (16, 8, 8, 4, 4)
        theirs = smp.Unet(
            "resnet18", encoder_weights=None, decoder_channels=channels, in_channels=1, classes=2
        ).eval()
        randomise_norms(theirs)
        encoder = ResNet(18, strides=RESNET_STRIDES, in_channels=1)
        ours = unet(encoder, 2, in_channels=1, decoder_channels=channels).eval()
        names = {
            "decoder.blocks": "decoder.levels",
            "conv1.0": "conv1",
            "conv1.1": "bn1",
            "conv2.0": "conv2",
            "conv2.1": "bn2",
            "segmentation_head.0": "head",
        }
        weights = {}
        for key, value in theirs.state_dict().items():
            if not key.startswith("encoder."):
                for theirs_name, ours_name in names.items():
                    key = key.replace(theirs_name, ours_name)
            weights[key] = value
        ours.load_state_dict(weights)
        x = torch.rand(2, 1, 64, 96)
        with torch.no_grad():
            wanted = theirs(x)
            assert wanted.std() > 0.01
            torch.testing.assert_close(ours(x), wanted, atol=1e-5, rtol=1e-4)

    def test_folded_batch_norm(self):
        network = resnet_unet()
        randomise_norms(network)
        network.eval()
        folded = fold_batch_norm(network)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        x = torch.rand(1, 3, 32, 64)
        torch.testing.assert_close(folded(x), network(x), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("strides", "channels", "message"),
        [
            ((4, 8, 16, 32), (8, 8, 8, 8), "channels must have 5 entries .* from stride 32 to 1"),
            ((4, 8, 8, 16), (8, 8, 8, 8), r"different powers of two, got \[4, 8, 8, 16\]"),
            ((7, 14, 28, 56), (8, 8, 8, 8), r"different powers of two, got \[7, 14, 28, 56\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, strides, channels, message):
        with pytest.raises(ValueError, match=message):
            UNetDecoder([8] * 4, strides, channels)


NETWORKS = {
    "paper": lambda: small_unet("valid"),
    "padded": lambda: small_unet(up="bilinear", attention=True, norm=nn.BatchNorm2d),
    "resnet": lambda: resnet_unet(attention=True),
    "resnet without norm": lambda: resnet_unet(norm=None),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
class TestTraining:
    def test_gradients_reach_all(self, make):
        network = make().train()
        x = torch.rand(2, network.in_channels, network.valid_size(64), network.valid_size(64))
        network(x).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_layers_of_the_classes(self, make):
        head = [n for n, _ in make().named_parameters() if n.startswith("head.")]
        assert head == ["head.weight", "head.bias"]
        assert make().class_layers == ["head.*"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_unet("valid"),
        lambda: small_unet(up="bilinear", attention=True, norm=nn.BatchNorm2d),
        lambda: unet(
            ContractingPath(1, width=4, depth=2), 2, decoder_channels=(8, 4), attention=True
        ),
    ],
)
def test_one_compiled_graph(make):
    network = make().eval()
    side = network.valid_size(40)
    x = torch.rand(1, 1, side, side)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), network(x))


def test_bfloat16():
    torch.manual_seed(0)
    network = unet(ContractingPath(1, width=8, depth=2), 2, decoder_channels=(8, 8)).eval()
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        wanted = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
    assert logits.dtype is torch.bfloat16
    # Of the size of bfloat16's rounding, 2 ** -8, over the eleven convolutions.
    assert (logits - wanted).std() < 0.03 * wanted.std()
