from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instseg.models.semantic.decoders import AttentionGate
from instseg.models.semantic.decoders.unet import conv_upsampled


class TestConvUpsampled:
    @pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (8, 8)])
    def test_is_the_convolution_of_the_upsampled_map(self, size):
        torch.manual_seed(0)
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
        plain = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
        got = conv_upsampled(x, weight, bias)
        torch.testing.assert_close(got, plain)
        seed = torch.randn_like(plain)
        wanted = torch.autograd.grad(plain, (x, weight, bias), seed)
        torch.testing.assert_close(torch.autograd.grad(got, (x, weight, bias), seed), wanted)

    def test_a_hand_worked_row(self):
        # 1, 2 becomes 1, 1, 2, 2; each output is left + 10 * middle + 100 * right.
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, 1] = torch.tensor([1.0, 10.0, 100.0])
        out = conv_upsampled(torch.tensor([[[[1.0, 2.0]]]]), weight)
        row = [110.0, 211.0, 221.0, 22.0]
        assert out.tolist() == [[[row, row]]]


class TestAttentionGate:
    def test_is_the_papers_equations(self):
        """Equations 1 and 2, pixel by pixel in float64."""
        torch.manual_seed(0)
        gate = AttentionGate(2, 3).double()
        nn.init.normal_(gate.score.weight)
        for conv in (gate.gate, gate.score):
            nn.init.normal_(conv.bias, std=0.1)
        x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
        g = torch.randn(1, 3, 2, 3, dtype=torch.float64)
        w_x, w_g, psi = gate.skip.weight, gate.gate.weight[..., 0, 0], gate.score.weight.flatten()
        alpha = [[0.0] * 3 for _ in range(2)]
        for i in range(2):
            for j in range(3):
                q = gate.score.bias.item()
                for f in range(2):
                    total = gate.gate.bias[f].item()
                    for c in range(2):
                        for a in range(2):
                            for b in range(2):
                                total += (w_x[f, c, a, b] * x[0, c, 2 * i + a, 2 * j + b]).item()
                    for c in range(3):
                        total += (w_g[f, c] * g[0, c, i, j]).item()
                    q += psi[f].item() * max(total, 0.0)
                alpha[i][j] = 1 / (1 + math.exp(-q))
        wanted = torch.empty_like(x)
        for i in range(4):
            for j in range(6):
                # The pixel's centre among those of the coarse map, held at the edge.
                y, z = (i + 0.5) / 2 - 0.5, (j + 0.5) / 2 - 0.5
                y, z = min(max(y, 0.0), 1.0), min(max(z, 0.0), 2.0)
                top, left = min(int(y), 0), min(int(z), 1)
                v, u = y - top, z - left
                weight = (
                    (1 - v) * (1 - u) * alpha[top][left]
                    + (1 - v) * u * alpha[top][left + 1]
                    + v * (1 - u) * alpha[top + 1][left]
                    + v * u * alpha[top + 1][left + 1]
                )
                wanted[0, :, i, j] = x[0, :, i, j] * weight
        torch.testing.assert_close(gate(x, g), wanted)

    def test_starts_nearly_open(self):
        torch.manual_seed(0)
        gate = AttentionGate(16, 32)
        x = torch.ones(1, 16, 8, 8)
        weights = gate(x, torch.rand(1, 32, 4, 4))
        assert weights.min() > 0.9
        assert weights.max() < 1
