"""The classifier of a pixel by the window around it (Ciresan et al., 2012), and the FCN it is.

Source: Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images, NIPS 2012.
That all windows of an image can be evaluated at once, without repeating what overlapping windows
share, is from Giusti et al., Fast Image Scanning with Deep Max-Pooling Convolutional Neural
Networks, 2013 (arXiv:1302.1700); the form with dilations is that of Long et al. (FCN, 2015, section
3.2) and Yu and Koltun (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from instseg.models.semantic.network import SegmentationNetwork

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class PatchClassifier(nn.Module):
    """Convolutions and max pools in turn, then two dense layers: the class of a window's centre.

    The defaults are the paper's N4 (table 1). Windows of 65 pixels, as its other nets have, fit for
    instance ``kernels=(4, 4, 5, 4)``.

    Args:
        in_channels: channels of the images.
        num_outputs: logits.
        window: the side of a window in pixels, odd.
        kernels: the side of each convolution's kernel; a 2 x 2 max pool follows each.
        maps: channels of each convolution.
        hidden: width of the first dense layer.
        activation: after convolutions and the first dense layer; tanh is that of the authors'
            earlier networks (Ciresan et al., IJCAI 2011).

    Attributes:
        layers: all of them, in order.
        window: as above.

    Raises:
        ValueError: an even window, an unknown activation, or a pool that would have to cut a map of
            odd side.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_outputs: int = 2,
        *,
        window: int = 95,
        kernels: Sequence[int] = (4, 5, 4, 4),
        maps: int = 48,
        hidden: int = 200,
        activation: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation}")
        side = _side_after(window, kernels)
        act = _ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        channels = in_channels
        for kernel in kernels:
            layers += [nn.Conv2d(channels, maps, kernel), act(), nn.MaxPool2d(2)]
            channels = maps
        layers += [nn.Flatten(), nn.Linear(channels * side**2, hidden), act()]
        layers += [nn.Linear(hidden, num_outputs)]
        self.layers = nn.Sequential(*layers)
        self.in_channels = in_channels
        self.num_outputs = num_outputs
        self.window = window
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = nn.init.calculate_gain(activation) if layer is not layers[-1] else 1.0
                nn.init.xavier_normal_(layer.weight, gain)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Windows ``[N, in_channels, window, window]`` to logits ``[N, num_outputs]``.

        Raises:
            ValueError: windows of another size.
        """
        if tuple(x.shape[1:]) != (self.in_channels, self.window, self.window):
            raise ValueError(
                f"windows must be [N, {self.in_channels}, {self.window}, {self.window}], "
                f"got {list(x.shape)}"
            )
        logits: Tensor = self.layers(x)
        return logits

    def predict_pixels(self, x: Tensor) -> Tensor:
        """Classify every pixel whose window lies in the image, one row of windows at a time.

        Args:
            x: ``[B, in_channels, H, W]``, sides at least ``window``.

        Returns:
            Logits ``[B, num_outputs, H - window + 1, W - window + 1]``; the first belongs to pixel
            ``(window - 1) / 2`` of each axis.
        """
        rows = []
        for top in range(x.shape[2] - self.window + 1):
            strip = x[:, :, top : top + self.window].unfold(3, self.window, 1)
            windows = strip.movedim(3, 1)
            logits = self(windows.flatten(0, 1))
            rows.append(logits.unflatten(0, windows.shape[:2]).transpose(1, 2))
        return torch.stack(rows, dim=2)


class PatchFCN(SegmentationNetwork):
    """A patch classifier as a fully convolutional network: the same logits for all pixels at once.

    A dense layer is a convolution. A pool keeps every position (stride 1) instead of every second
    one, and what follows it reads only every second one of those (a dilation that doubles with each
    pool), so that each output sees exactly what it would see in its own window.

    Args:
        classifier: its weights are copied.
    """

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.in_channels = classifier.in_channels
        self.num_outputs = classifier.num_outputs
        self.window = classifier.window
        self.border = (classifier.window - 1) // 2
        layers: list[nn.Module] = []
        dilation, side = 1, classifier.window
        channels = classifier.in_channels
        for layer in classifier.layers:
            if isinstance(layer, nn.Conv2d):
                kernel = layer.kernel_size[0]
                layers.append(_convolution(layer, channels, kernel, dilation))
                channels, side = layer.out_channels, side - kernel + 1
            elif isinstance(layer, nn.MaxPool2d):
                layers.append(nn.MaxPool2d(2, stride=1, dilation=dilation))
                dilation, side = 2 * dilation, side // 2
            elif isinstance(layer, nn.Linear):
                layers.append(_convolution(layer, channels, side, dilation))
                channels, side = layer.out_features, 1
            elif not isinstance(layer, nn.Flatten):
                layers.append(type(layer)())
        self.layers = nn.Sequential(*layers)
        self.class_layers = [f"layers.{len(layers) - 1}.*"]

    def valid_size(self, size: int) -> int:
        """``size``, but at least a window."""
        return max(size, self.window)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to logits ``[B, num_outputs, H - 2 border, W - 2 border]``."""
        logits: Tensor = self.layers(x)
        return logits


def patch_fcn(
    num_outputs: int,
    *,
    in_channels: int = 1,
    window: int = 95,
    kernels: Sequence[int] = (4, 5, 4, 4),
    maps: int = 48,
    hidden: int = 200,
    activation: Literal["tanh", "relu"] = "tanh",
) -> PatchFCN:
    """A new patch classifier, to be trained on all windows of an image at once.

    The arguments are those of `PatchClassifier`.
    """
    return PatchFCN(
        PatchClassifier(
            in_channels,
            num_outputs,
            window=window,
            kernels=kernels,
            maps=maps,
            hidden=hidden,
            activation=activation,
        )
    )


def _convolution(
    layer: nn.Conv2d | nn.Linear, in_channels: int, kernel: int, dilation: int
) -> nn.Conv2d:
    """The convolution with the weights of a convolution or of a dense layer over its window."""
    conv = nn.Conv2d(in_channels, len(layer.weight), kernel, dilation=dilation)
    with torch.no_grad():
        conv.weight.copy_(layer.weight.view_as(conv.weight))
        assert conv.bias is not None
        assert layer.bias is not None
        conv.bias.copy_(layer.bias)
    return conv


def _side_after(window: int, kernels: Sequence[int]) -> int:
    """The side of the last map.

    Raises:
        ValueError: the window is even, or a map is too small or of odd side for its pool.
    """
    if window % 2 == 0:
        raise ValueError(f"window must be odd, to have a centre, got {window}")
    side = window
    for i, kernel in enumerate(kernels):
        side = side - kernel + 1
        if side < 2 or side % 2:
            raise ValueError(
                f"kernels {tuple(kernels)} leave a map of side {side} after convolution {i} of a "
                f"window of {window} pixels; its 2 x 2 pool needs an even side: change kernel {i}"
            )
        side //= 2
    return side
