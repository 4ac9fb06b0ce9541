"""What every backbone offers, and how parts of it are kept frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Self

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A network from images ``[B, C, H, W]`` to a list of feature maps, finest first.

    Attributes:
        channels: channels of each map.
        strides: image pixels per feature pixel of each map.
    """

    channels: list[int]
    strides: list[int]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def freeze(self, modules: Iterable[nn.Module]) -> None:
        """Take ``modules`` out of training: no gradients, batch norm on its running figures."""
        for module in modules:
            module.requires_grad_(False)
            self._frozen.append(module.eval())

    def freeze_batch_norm(self) -> None:
        """Freeze every batch norm: the usual choice where few images share a step."""
        self.freeze(m for m in self.modules() if isinstance(m, nn.BatchNorm2d))

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @abstractmethod
    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of a classification network of the same architecture.

        Raises:
            ValueError: keys are missing or unknown, or shapes differ; the message names them.
        """


def check_same_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> None:
    """Raise a `ValueError` that says how the keys and shapes of two state dicts differ.

    Counters of batches, which older files lack, are passed over.
    """
    problems = [f"no key {k}" for k in own if k not in given and "num_batches" not in k]
    problems += [f"unknown key {k}" for k in given if k not in own]
    problems += [
        f"{k} is {list(v.shape)} there and {list(own[k].shape)} here"
        for k, v in given.items()
        if k in own and v.shape != own[k].shape
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"these weights are not of {name}: {'; '.join(problems[:4])}{more}")
