"""SegNet (Badrinarayanan et al., 2017, arXiv:1511.00561)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones.vgg import VGG
from instseg.models.layers import Norm
from instseg.models.semantic.network import SegmentationNetwork


class SegNet(SegmentationNetwork):
    """VGG and its mirror image, whose upsampling puts values where max pooling took them from.

    Each decoder stage unpools with the indices of the encoder's pool, which leaves zeros elsewhere,
    and then has as many convolutions as the encoder's stage, the last of them to the channels of
    the stage above (section 3). The very last one, of the first stage, is the classifier ``head``.
    Convolutions have a bias and batch norm both, as in the authors' code.

    Args:
        encoder: VGG of any depth, VGG-16 with batch norm in the paper.
        in_channels: channels of the images.
        num_outputs: maps of logits.
        norm: normalisation of the decoder, batch norm in the paper; None for none.
    """

    def __init__(
        self,
        encoder: VGG,
        *,
        in_channels: int,
        num_outputs: int,
        norm: Norm | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_channels = in_channels
        self.num_outputs = num_outputs
        self.class_layers = ["head.*"]
        stages = _stage_convs(encoder)
        above = [None, *(stage[0].out_channels for stage in stages[:-1])]
        self.decoder = nn.ModuleList(
            _decoder_stage(len(stage), stage[0].out_channels, out, norm)
            for stage, out in zip(reversed(stages), reversed(above), strict=True)
        )
        self.unpool = nn.MaxUnpool2d(2)
        self.head = _convolution(stages[0][0].out_channels, num_outputs)

    def valid_size(self, size: int) -> int:
        """The next multiple of 32."""
        stride = max(self.encoder.strides)
        return -(-size // stride) * stride

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to logits ``[B, num_outputs, H, W]``."""
        indices = []
        for layer in self.encoder.features:
            if isinstance(layer, nn.MaxPool2d):
                x, index = F.max_pool2d(x, 2, return_indices=True)
                indices.append(index)
            else:
                x = layer(x)
        for stage, index in zip(self.decoder, reversed(indices), strict=True):
            x = stage(self.unpool(x, index))
        logits: Tensor = self.head(x)
        return logits

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load torchvision's VGG of the encoder's depth, with or without batch norm.

        An encoder with batch norm takes the convolutions of a VGG without it (as the paper's did)
        and keeps its own batch norm.

        Raises:
            ValueError: keys are missing or unknown, or shapes differ; the message names them.
        """
        if self._has_batch_norm and not any(k.endswith("running_mean") for k in state_dict):
            state_dict = self._with_own_batch_norm(state_dict)
        self.encoder.load_classifier(state_dict)

    @property
    def _has_batch_norm(self) -> bool:
        return any(isinstance(layer, nn.BatchNorm2d) for layer in self.encoder.features)

    def _with_own_batch_norm(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a VGG without batch norm, in the encoder's names, and its batch norm."""
        weights: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        for i, layer in enumerate(self.encoder.features):
            if isinstance(layer, nn.BatchNorm2d):
                weights |= {f"features.{i}.{k}": v for k, v in layer.state_dict().items()}
            else:
                names[f"features.{len(names)}"] = f"features.{i}"
        for key, value in plain.items():
            layer_name, _, kind = key.rpartition(".")
            weights[f"{names.get(layer_name, layer_name)}.{kind}"] = value
        return weights


def segnet_vgg16(
    num_outputs: int, *, in_channels: int = 3, width: int = 64, batch_norm: bool = True
) -> SegNet:
    """SegNet as the paper has it, on VGG-16.

    Args:
        num_outputs: maps of logits.
        in_channels: channels of the images.
        width: channels of the first stage, 64 in the paper.
        batch_norm: batch norm in encoder and decoder.
    """
    return SegNet(
        VGG(16, batch_norm=batch_norm, width=width, in_channels=in_channels),
        in_channels=in_channels,
        num_outputs=num_outputs,
        norm=nn.BatchNorm2d if batch_norm else None,
    )


def _stage_convs(encoder: VGG) -> list[list[nn.Conv2d]]:
    """The convolutions before each pool."""
    stages: list[list[nn.Conv2d]] = [[]]
    for layer in encoder.features:
        if isinstance(layer, nn.Conv2d):
            stages[-1].append(layer)
        elif isinstance(layer, nn.MaxPool2d):
            stages.append([])
    return stages[:-1]


def _decoder_stage(
    convs: int, channels: int, out_channels: int | None, norm: Norm | None
) -> nn.Sequential:
    """``convs`` convolutions, the last to ``out_channels``; without those, one fewer."""
    widths = [channels] * convs + ([] if out_channels is None else [out_channels])
    stage = nn.Sequential()
    for before, after in pairwise(widths):
        stage.append(_convolution(before, after))
        if norm is not None:
            stage.append(norm(after))
        stage.append(nn.ReLU(inplace=True))
    return stage


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
