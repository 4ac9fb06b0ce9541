from __future__ import annotations

import torch
from torch import nn

from instseg.models.batch_norm import BatchNorm2d


def test_batch_norm_on_a_single_value():
    """It is normalised by the running figures, which stay; two values are torch's business."""
    norm = BatchNorm2d(2, eps=1.0)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([3.0, 8.0]))
    x = torch.tensor([5.0, 8.0]).view(1, 2, 1, 1)
    y = norm(x)
    assert y.flatten().tolist() == [2.0, 2.0]
    y.sum().backward()
    assert norm.weight.grad.tolist() == [2.0, 2.0]
    assert norm.running_mean.tolist() == [1.0, 2.0]
    pair = torch.randn(2, 2, 1, 1)
    assert torch.equal(norm(pair), nn.BatchNorm2d(2, eps=1.0)(pair))
