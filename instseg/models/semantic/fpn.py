"""Segmentation by a feature pyramid: the semantic branch of Panoptic FPN on any encoder."""

from __future__ import annotations

from torch import nn

from instseg.models.backbones import Backbone
from instseg.models.backbones.unet import ContractingPath
from instseg.models.layers import Norm, group_norm, init_normal
from instseg.models.semantic.decoders.fpn import FPNDecoder
from instseg.models.semantic.network import EncoderDecoder


def fpn_segmentation(
    encoder: Backbone,
    num_outputs: int,
    *,
    in_channels: int = 3,
    pyramid_channels: int = 256,
    segmentation_channels: int = 128,
    norm: Norm | None = group_norm,
    stride: int = 4,
) -> EncoderDecoder:
    """Panoptic FPN's semantic branch (Kirillov et al., 2019, section 3).

    The pyramid's levels are summed at a stride of 4; a 1x1 convolution makes logits, which are
    upsampled bilinearly to the image's size.

    Args:
        encoder: any backbone.
        num_outputs: maps of logits.
        in_channels: channels of the images that ``encoder`` takes.
        pyramid_channels: channels of the pyramid.
        segmentation_channels: channels of the branches and of their sum.
        norm: normalisation in the branches, group norm with 32 groups in the paper.
        stride: stride of the sum; finer maps of the encoder are not used.

    Raises:
        ValueError: see `FPNDecoder`.
    """
    decoder = FPNDecoder(
        encoder.channels,
        encoder.strides,
        pyramid_channels,
        segmentation_channels,
        norm=norm,
        stride=stride,
    )
    head = nn.Sequential(nn.Conv2d(segmentation_channels, num_outputs, 1))
    init_normal(head[0], 0.01)
    if stride > 1:
        head.append(nn.Upsample(scale_factor=float(stride), mode="bilinear"))
    return EncoderDecoder(encoder, decoder, head, in_channels=in_channels, num_outputs=num_outputs)


def unet_fpn(
    in_channels: int = 1,
    num_outputs: int = 2,
    *,
    width: int = 64,
    depth: int = 4,
    norm: Norm | None = nn.BatchNorm2d,
    dropout: float = 0.0,
    pyramid_channels: int = 64,
    segmentation_channels: int = 64,
    stride: int = 1,
) -> EncoderDecoder:
    """U-Net's contracting path, padded, with the decoder of `fpn_segmentation`.

    Args:
        in_channels: channels of the images.
        num_outputs: maps of logits.
        width: channels of the finest map.
        depth: number of poolings.
        norm: normalisation after each convolution of the contracting path and of the branches.
        dropout: see `ContractingPath`.
        pyramid_channels: channels of the pyramid; less than for other encoders, since its finest
            level has the image's size.
        segmentation_channels: channels of the branches and of their sum.
        stride: stride of the sum; 1 keeps U-Net's fine borders.

    Raises:
        ValueError: see `ContractingPath` and `FPNDecoder`.
    """
    encoder = ContractingPath(in_channels, width=width, depth=depth, norm=norm, dropout=dropout)
    return fpn_segmentation(
        encoder,
        num_outputs,
        in_channels=in_channels,
        pyramid_channels=pyramid_channels,
        segmentation_channels=segmentation_channels,
        norm=norm,
        stride=stride,
    )
