"""A batch of the engine's own: a part of another, or one read from a file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from instseg.engine.protocols import Batch, PerImage
from instseg.structures.geometry import Size


@dataclass(frozen=True, eq=False)
class PlainBatch:
    """B images with what is known of them; see `instseg.engine.protocols.Batch`."""

    images: list[Tensor]
    targets: list[PerImage]
    image_ids: list[int]
    original_sizes: list[Size]
    paths: list[str]

    @classmethod
    def part_of(cls, batch: Batch, start: int = 0, stop: int | None = None) -> PlainBatch:
        """The images ``start`` to ``stop - 1`` of a batch, by default all; tensors are shared."""
        part = slice(start, stop)
        return cls(
            images=list(batch.images[part]),
            targets=list(batch.targets[part]),
            image_ids=list(batch.image_ids[part]),
            original_sizes=list(batch.original_sizes[part]),
            paths=[str(path) for path in batch.paths[part]],
        )

    def __len__(self) -> int:
        return len(self.images)
