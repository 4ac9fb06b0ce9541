"""pix2pix (Isola et al., 2017, arXiv:1611.07004): image to image by a conditional adversary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from instseg.losses.pix2pix import discriminator_loss, generator_loss, image_l1_loss
from instseg.models.layers import Norm
from instseg.models.preprocess import Preprocess
from instseg.models.semantic.segmenter import mirrored
from instseg.models.targets import check_targets
from instseg.structures.geometry import Size
from instseg.structures.image_target import ImageTarget

NormName = Literal["batch", "instance"]


class UNetGenerator(nn.Module):
    """The paper's U-Net (section 6.1.1): 4 x 4 convolutions of stride 2 down, and as many up.

    Channels double from ``width`` to ``8 * width``. Every convolution but the first, the last and
    the innermost, whose map may be a single pixel, is followed by a normalisation; the last alone
    has a bias, as in the authors' code. ReLUs are leaky (slope 0.2) on the way down, plain on the
    way up; the output is a tanh.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the pictures to make.
        depth: halvings, 8 in the paper; sides are multiples of ``2**depth``.
        width: channels after the first convolution, 64 in the paper.
        norm: "batch", or "instance", which is what the paper's batch norm amounts to, since it
            trains on single images and takes their statistics at test time too.
        dropout: rate after the first three layers up, 0.5 in the paper.
        test_dropout: keep the dropout at test time, as the paper does: its only source of noise,
            so that predictions are random.

    Raises:
        ValueError: ``depth`` is below 2, or an unknown norm.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        depth: int = 8,
        width: int = 64,
        norm: NormName = "batch",
        dropout: float = 0.5,
        test_dropout: bool = False,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth must be at least 2, got {depth}")
        make_norm = _norm(norm)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.depth = depth
        self.test_dropout = test_dropout
        widths = [width * 2 ** min(i, 3) for i in range(depth)]
        self.down = nn.ModuleList([_conv(in_channels, widths[0])])
        for i in range(1, depth):
            block = nn.Sequential(nn.LeakyReLU(0.2), _conv(widths[i - 1], widths[i]))
            self.down.append(block.append(make_norm(widths[i])) if i < depth - 1 else block)
        self.up = nn.ModuleList()
        for i in reversed(range(1, depth)):
            inputs = widths[i] if i == depth - 1 else 2 * widths[i]
            block = nn.Sequential(nn.ReLU(), _deconv(inputs, widths[i - 1]))
            block.append(make_norm(widths[i - 1]))
            self.up.append(block.append(nn.Dropout(dropout)) if len(self.up) < 3 else block)
        last = _deconv(2 * widths[0], out_channels, bias=True)
        self.up.append(nn.Sequential(nn.ReLU(), last, nn.Tanh()))
        initialise(self)

    def valid_size(self, size: int) -> int:
        """The next multiple of ``2**depth``."""
        return -(-size // 2**self.depth) * 2**self.depth

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but dropout may stay on."""
        super().train(mode)
        if self.test_dropout:
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` in [-1, 1] to ``[B, out_channels, H, W]`` in (-1, 1)."""
        maps = []
        for down in self.down:
            x = down(x)
            maps.append(x)
        x = self.up[0](maps.pop())
        for up in list(self.up)[1:]:
            x = up(torch.cat([x, maps.pop()], dim=1))
        return x


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (section 6.1.2): whether each patch of a pair is real or made, as a logit.

    Args:
        in_channels: channels of image and picture together.
        layers: convolutions of stride 2; 3 give patches of 70 x 70 pixels as the paper prefers,
            1 and 5 its 16 x 16 and 286 x 286.
        width: channels of the first, 64 in the paper.
        norm: as of `UNetGenerator`.

    Raises:
        ValueError: ``layers`` is below 1, or an unknown norm.
    """

    def __init__(
        self, in_channels: int = 6, *, layers: int = 3, width: int = 64, norm: NormName = "batch"
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        make_norm = _norm(norm)
        widths = [width * 2 ** min(i, 3) for i in range(layers + 1)]
        self.append(_conv(in_channels, widths[0], bias=True)).append(nn.LeakyReLU(0.2))
        for i in range(1, layers + 1):
            self.append(_conv(widths[i - 1], widths[i], stride=2 if i < layers else 1))
            self.append(make_norm(widths[i])).append(nn.LeakyReLU(0.2))
        self.append(_conv(widths[-1], 1, stride=1, bias=True))
        self.min_size = 3 * 2**layers
        initialise(self)


class Pix2Pix(nn.Module):
    """Losses of generator and discriminator with targets, pictures without.

    The gradient of the one sum of losses is that of two separate objectives: the discriminator's
    loss sees the generated picture as a constant, and the generator's runs through a discriminator
    whose weights are constants. Both follow from the weights before the step; the paper's steps
    alternate. Batch norm in the discriminator takes its running figures from its own two passes.

    Images of any size are mirrored at the right and below to a size that the networks take. The
    adversary sees the mirrored part too, the L1 loss does not.

    Args:
        generator: images to pictures.
        discriminator: image and picture, one above the other, to logits.
        l1_weight: lambda of section 3.1; 100 in the paper's experiments.
    """

    class_layers: Sequence[str] = ()

    def __init__(
        self,
        generator: UNetGenerator,
        discriminator: PatchDiscriminator,
        *,
        l1_weight: float = 100.0,
    ) -> None:
        super().__init__()
        self.preprocess = _to_tanh_range(generator.in_channels)
        self.preprocess_target = _to_tanh_range(generator.out_channels)
        self.generator = generator
        self.discriminator = discriminator
        self.l1_weight = l1_weight

    @property
    def networks(self) -> list[nn.Module]:
        """The part without control flow that depends on data: what compiles as one graph."""
        return [self.generator]

    def valid_size(self, size: int) -> int:
        """The least side of at least ``size`` pixels that both networks take."""
        return self.generator.valid_size(max(size, self.discriminator.min_size))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[ImageTarget] | None = None
    ) -> dict[str, Tensor] | list[ImageTarget]:
        """Run the model.

        Args:
            images: ``[C, H, W]`` each, of any sizes: uint8, uint16, or floating in 0..1.
            targets: the picture that each should become.

        Returns:
            With targets ``loss_gan`` and ``loss_l1`` (times its weight) of the generator and
            ``loss_discriminator``, whose sum is to be trained. Without, for each image the
            picture, ``float32`` in [0, 1], of its size.

        Raises:
            ValueError: images and targets differ in number or size, or have another number of
                channels than the networks.
        """
        if not images:
            raise ValueError("a model needs at least one image")
        if targets is not None:
            check_targets(images, targets)
            _check_channels(targets, self.generator.out_channels)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        canvas = (
            self.valid_size(max(h for h, _ in sizes)),
            self.valid_size(max(w for _, w in sizes)),
        )
        x = _batch(self.preprocess, images, canvas)
        fake = self.generator(x)
        if targets is None:
            pictures = ((fake.float() + 1) / 2).clamp(0, 1)
            return [
                ImageTarget(picture[:, :h, :w])
                for picture, (h, w) in zip(pictures, sizes, strict=True)
            ]
        y = _batch(self.preprocess_target, [target.image for target in targets], canvas)
        judged = self._judge_by_constant(torch.cat([x, fake], dim=1))
        return {
            "loss_gan": generator_loss(judged),
            "loss_l1": self.l1_weight * image_l1_loss(fake, y, sizes),
            "loss_discriminator": discriminator_loss(
                self.discriminator(torch.cat([x, y], dim=1)),
                self.discriminator(torch.cat([x, fake.detach()], dim=1)),
            ),
        }

    def _judge_by_constant(self, pairs: Tensor) -> Tensor:
        """The discriminator's logits, with no gradient to its weights or trace in its buffers."""
        weights = {k: p.detach() for k, p in self.discriminator.named_parameters()}
        buffers = {k: b.clone() for k, b in self.discriminator.named_buffers()}
        logits: Tensor = functional_call(self.discriminator, weights | buffers, (pairs,))
        return logits


def pix2pix(
    in_channels: int = 3,
    out_channels: int = 3,
    *,
    depth: int = 8,
    width: int = 64,
    discriminator_layers: int = 3,
    discriminator_width: int = 64,
    norm: NormName = "batch",
    dropout: float = 0.5,
    test_dropout: bool = False,
    l1_weight: float = 100.0,
) -> Pix2Pix:
    """pix2pix as the paper has it; the arguments are those of the three classes."""
    return Pix2Pix(
        UNetGenerator(
            in_channels,
            out_channels,
            depth=depth,
            width=width,
            norm=norm,
            dropout=dropout,
            test_dropout=test_dropout,
        ),
        PatchDiscriminator(
            in_channels + out_channels,
            layers=discriminator_layers,
            width=discriminator_width,
            norm=norm,
        ),
        l1_weight=l1_weight,
    )


def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02^2), biases 0 (section 6.2); gains of norms from N(1, 0.02^2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _conv(inputs: int, outputs: int, *, stride: int = 2, bias: bool = False) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=bias)


def _deconv(inputs: int, outputs: int, *, bias: bool = False) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)


def _norm(name: str) -> Norm:
    if name == "batch":
        return nn.BatchNorm2d
    if name == "instance":
        return lambda channels: nn.InstanceNorm2d(channels, affine=True)
    raise ValueError(f"norm must be 'batch' or 'instance', got {name!r}")


def _to_tanh_range(channels: int) -> Preprocess:
    half = (0.5,) * channels
    return Preprocess(half, half, 1)


def _batch(preprocess: Preprocess, images: Sequence[Tensor], canvas: Size) -> Tensor:
    return torch.cat([mirrored(preprocess([i]).tensor, (0, 0), canvas) for i in images])


def _check_channels(targets: Sequence[ImageTarget], channels: int) -> None:
    for i, target in enumerate(targets):
        if target.image.shape[0] != channels:
            raise ValueError(
                f"target {i} has {target.image.shape[0]} channels, the generator makes {channels}"
            )
