"""A model's buffers, kept so that a forward pass can be taken back."""

from __future__ import annotations

import torch
from torch import nn


class BufferSnapshot:
    """The buffers of a model as they are now, such as the running figures of batch norm.

    A forward pass in training moves them before anyone knows whether its loss is finite, so a step
    that is not taken puts them back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values = {name: buffer.clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model's buffers these values again."""
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self._values[name])
