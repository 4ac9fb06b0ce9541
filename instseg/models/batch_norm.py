"""Batch norm that can train on a single value a channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """As `torch.nn.BatchNorm2d`, but a single value a channel is normalised by the running figures.

    Such a value, of one image whose map has shrunk to 1 x 1, has no variance of its own:
    `torch.nn.BatchNorm2d` refuses to train on it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)
