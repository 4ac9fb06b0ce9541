"""FCN-32s, 16s and 8s (Long et al., Fully Convolutional Networks, 2015, arXiv:1411.4038)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes
from instseg.models.backbones.vgg import VGG
from instseg.models.semantic.network import SegmentationNetwork

Stride = Literal[8, 16, 32]


class FCN(SegmentationNetwork):
    """A classifier's dense layers as convolutions, scored, and upsampled with skips.

    The last map is scored at stride 32. Each skip doubles the scores' resolution by a transposed
    convolution that starts as bilinear interpolation and is learned, and adds the scores of the
    encoder's map of that resolution. One more transposed convolution reaches the image's size. All
    scores start at zero (section 4.3), so that a net with one skip more starts from what the
    coarser one predicts.

    Where the paper pads the image by 100 pixels and crops, ``fc6`` is padded to keep the size.

    Args:
        encoder: images to maps, among them those of strides 32 and, for the skips, 16 and 8.
        in_channels: channels of the images.
        num_outputs: maps of logits.
        stride: 32 for FCN-32s (no skip), 16 for FCN-16s, 8 for FCN-8s.
        hidden: channels of ``fc6`` and ``fc7``; 4096 in the paper.
        dropout: rate after each of the two.
        learn_upsampling: learn the last transposed convolution too, which the paper keeps
            bilinear.

    Raises:
        ValueError: an unknown ``stride``, or the encoder has no map of one that is needed.
    """

    def __init__(
        self,
        encoder: Backbone,
        *,
        in_channels: int,
        num_outputs: int,
        stride: Stride = 8,
        hidden: int = 4096,
        dropout: float = 0.5,
        learn_upsampling: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"stride must be 8, 16 or 32, got {stride}")
        skips = [s for s in (16, 8) if s >= stride]
        missing = [s for s in (32, *skips) if s not in encoder.strides]
        if missing:
            raise ValueError(
                f"FCN-{stride}s needs an encoder with a map of stride {missing[0]}, "
                f"this one has strides {encoder.strides}"
            )
        self.encoder = encoder
        self.in_channels = in_channels
        self.num_outputs = num_outputs
        self.class_layers = ["score.*", "skip_scores.*", "upsamplings.*", "final.*"]
        self._last = _last_of(32, encoder)
        self._skips = [_last_of(s, encoder) for s in skips]

        self.fc6 = nn.Conv2d(encoder.channels[self._last], hidden, 7, padding=3)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            _zero(layer.bias)
        self.dropout = nn.Dropout(dropout)
        self.score = _zero_score(hidden, num_outputs)
        self.skip_scores = nn.ModuleList(
            _zero_score(encoder.channels[i], num_outputs) for i in self._skips
        )
        self.upsamplings = nn.ModuleList(bilinear_deconvolution(num_outputs, 2) for _ in skips)
        self.final = (
            bilinear_deconvolution(num_outputs, stride)
            if learn_upsampling
            else BilinearUpsampling(stride)
        )

    def valid_size(self, size: int) -> int:
        """The next multiple of the encoder's largest stride."""
        stride = max(self.encoder.strides)
        return -(-size // stride) * stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to logits ``[B, num_outputs, H, W]``."""
        maps = self.encoder(x)
        features = self.dropout(F.relu(self.fc6(maps[self._last])))
        features = self.dropout(F.relu(self.fc7(features)))
        scores = self.score(features)
        for up, skip, i in zip(self.upsamplings, self.skip_scores, self._skips, strict=True):
            scores = up(scores) + skip(maps[i])
        logits: Tensor = self.final(scores)
        return logits

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a classification network: the encoder, and VGG's dense layers into fc6 and fc7.

        A dense layer over 7 x 7 features is a 7 x 7 convolution (figure 2). fc6 and fc7 keep their
        initialisation where the file has none, or, as torchvision's ``IMAGENET1K_FEATURES``, has
        them filled with NaN.

        Args:
            state_dict: in torchvision's names.

        Raises:
            ValueError: keys are missing or unknown, or shapes differ; the message names them.
        """
        self.encoder.load_classifier(state_dict)
        fc6, fc7 = state_dict.get("classifier.0.weight"), state_dict.get("classifier.3.weight")
        if fc6 is None or fc7 is None or not (fc6.isfinite().all() and fc7.isfinite().all()):
            return
        if fc6.shape[1] % 49:
            raise ValueError(
                f"classifier.0.weight is {list(fc6.shape)}: a VGG's first dense layer reads maps "
                "of 7 x 7, so its second side must be a multiple of 49"
            )
        weights = {
            "fc6.weight": fc6.unflatten(1, (-1, 7, 7)),
            "fc6.bias": state_dict["classifier.0.bias"],
            "fc7.weight": fc7[:, :, None, None],
            "fc7.bias": state_dict["classifier.3.bias"],
        }
        own = {k: v for k, v in self.state_dict().items() if k in weights}
        check_same_shapes(own, weights, "an FCN of this width, by their classifier")
        self.load_state_dict(weights, strict=False)


class PooledVGG(VGG):
    """VGG-16's five pooled maps, which FCN scores: strides 2 to 32.

    Args:
        batch_norm: batch norm after each convolution; the paper has none.
        width: channels of the first stage, 64 in the paper.
        in_channels: channels of the images.
        freeze_at: this many stages, from the first, are not trained.
    """

    def __init__(
        self,
        *,
        batch_norm: bool = False,
        width: int = 64,
        in_channels: int = 3,
        freeze_at: int = 0,
    ) -> None:
        super().__init__(
            16, batch_norm=batch_norm, width=width, in_channels=in_channels, freeze_at=freeze_at
        )
        self.channels = self.channels[:4] + self.channels[-1:]
        self.strides = self.strides[1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, in_channels, H, W]`` to pool1 .. pool5."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._pools:
                maps.append(x)
        return maps


class BilinearUpsampling(nn.Module):
    """Bilinear interpolation by an even factor, as a fixed transposed convolution.

    It differs from `torch.nn.functional.interpolate` in the outer ``factor / 2`` pixels, where the
    missing neighbours count as 0.
    """

    kernel: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("kernel", bilinear_kernel(factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, factor * H, factor * W]``."""
        maps = x.flatten(0, 1)[:, None]
        kernel = self.kernel[None, None].to(x.dtype)
        large = F.conv_transpose2d(maps, kernel, stride=self.factor, padding=self.factor // 2)
        return large.unflatten(0, x.shape[:2])[:, :, 0]


def bilinear_deconvolution(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution over all channels that starts as bilinear interpolation of each."""
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False
    )
    nn.init.zeros_(layer.weight)
    kernel = bilinear_kernel(factor)
    with torch.no_grad():
        for i in range(channels):
            layer.weight[i, i] = kernel
    return layer


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel ``[2 factor, 2 factor]`` of bilinear upsampling by an even factor (section 3.3).

    Along each axis the weight falls linearly from the centre to 0 at a distance of ``factor``.
    """
    line = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return torch.outer(line, line)


def fcn_vgg16(
    num_outputs: int,
    *,
    stride: Stride = 8,
    in_channels: int = 3,
    width: int = 64,
    hidden: int = 4096,
    batch_norm: bool = False,
    dropout: float = 0.5,
    learn_upsampling: bool = False,
) -> FCN:
    """FCN as the paper has it, on VGG-16; the arguments are those of `FCN` and `PooledVGG`."""
    encoder = PooledVGG(batch_norm=batch_norm, width=width, in_channels=in_channels)
    return FCN(
        encoder,
        in_channels=in_channels,
        num_outputs=num_outputs,
        stride=stride,
        hidden=hidden,
        dropout=dropout,
        learn_upsampling=learn_upsampling,
    )


def _last_of(stride: int, encoder: Backbone) -> int:
    return max(i for i, s in enumerate(encoder.strides) if s == stride)


def _zero_score(channels: int, num_outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_outputs, 1)
    nn.init.zeros_(layer.weight)
    _zero(layer.bias)
    return layer


def _zero(bias: Tensor | None) -> None:
    assert bias is not None
    nn.init.zeros_(bias)
