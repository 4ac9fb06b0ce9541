"""The tensors of a checkpoint: what they are, and how they come into those of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from instseg.engine.sharding import put


class StoredTensors(Protocol):
    """Tensors that lie in one file or sharded in several."""

    @property
    def about(self) -> Mapping[str, Tensor]:
        """Each tensor's shape and type; the values may be missing (on the device "meta")."""

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Copy the tensors named into those given, of their shapes and types.

        In a process group all processes call it; each gets what of a tensor it has a part in.

        Raises:
            UnreadableFileError: a file cannot be read.
        """


@dataclass(frozen=True)
class WholeTensors:
    """Tensors that were read already."""

    about: Mapping[str, Tensor]

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Copy them."""
        for key, target in into.items():
            put(target, self.about[key])
