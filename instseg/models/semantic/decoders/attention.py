"""The attention gate of Attention U-Net."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import init_normal


class AttentionGate(nn.Module):
    """Weights in (0, 1) for each pixel of a skip map (Oktay et al., 2018, section 2.2, figure 2).

    Additive attention (equations 1 and 2): ``sigmoid(psi(relu(W_x x + W_g g + b_g)) + b_psi)``. It
    is computed at the resolution of the gating signal, to which a 2x2 convolution of stride 2 takes
    the skip map (as in the authors' program), and the weights are interpolated bilinearly.

    Args:
        channels: channels of the skip map.
        gate_channels: channels of the gating signal.
    """

    def __init__(self, channels: int, gate_channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, channels, 2, stride=2, bias=False)
        self.gate = nn.Conv2d(gate_channels, channels, 1)
        self.score = nn.Conv2d(channels, 1, 1)
        for conv in (self.skip, self.gate):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        # The gates start nearly open at all pixels, as in the paper: sigmoid(3) is 0.95.
        init_normal(self.score, 0.01)
        assert self.gate.bias is not None
        assert self.score.bias is not None
        nn.init.zeros_(self.gate.bias)
        nn.init.constant_(self.score.bias, 3.0)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Weigh a skip map.

        Args:
            x: ``[B, channels, 2 h, 2 w]``.
            gate: the decoder's map one level below, ``[B, gate_channels, h, w]``.

        Returns:
            The skip map times its weights, of the shape of ``x``.
        """
        score = self.score(F.relu(self.skip(x) + self.gate(gate)))
        return x * F.interpolate(score.sigmoid(), scale_factor=2.0, mode="bilinear")
