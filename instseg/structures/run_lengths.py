"""Many run-length codes side by side, as kernels read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instseg.structures.masks import RLE

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RunLengths:
    """N masks as COCO's compressed strings in one piece of text.

    Args:
        text: ``uint8 [L]``.
        begin: ``int64 [N]``, where each string begins in the text.
        end: ``int64 [N]``, where it ends.
        size: ``int64 [N, 2]``, height and width of each one's image.
    """

    text: npt.NDArray[np.uint8]
    begin: Ints
    end: Ints
    size: Ints

    @classmethod
    def of(cls, codes: Sequence[RLE]) -> RunLengths:
        """Codes whose counts are bytes."""
        counts = [code["counts"] for code in codes]
        end = np.cumsum(np.fromiter(map(len, counts), np.int64, len(counts)))
        size = np.array([code["size"] for code in codes], dtype=np.int64).reshape(-1, 2)
        begin = np.concatenate([np.zeros(1, np.int64), end])[: len(codes)]
        return cls(np.frombuffer(bytearray().join(counts), np.uint8), begin, end, size)

    def __len__(self) -> int:
        return len(self.begin)

    def __getitem__(self, index: int) -> RLE:
        counts = self.text[self.begin[index] : self.end[index]].tobytes()
        return {"size": self.size[index].tolist(), "counts": counts}

    def __iter__(self) -> Iterator[RLE]:
        strings = zip(self.begin.tolist(), self.end.tolist(), self.size.tolist(), strict=True)
        text = self.text.data
        return ({"size": size, "counts": bytes(text[a:b])} for a, b, size in strings)

    def take(self, order: Ints) -> RunLengths:
        """The masks at some positions, in that order; the text is shared."""
        return RunLengths(self.text, self.begin[order], self.end[order], self.size[order])


@dataclass(frozen=True, eq=False)
class ResultColumns:
    """N records of a COCO result file.

    Args:
        image: ``int64 [N]``, ids.
        category: ``int64 [N]``, ids.
        score: ``float64 [N]``.
        box: ``float64 [N, 4]``: x, y, width, height; None where records have none.
        masks: None where records have none.
    """

    image: Ints
    category: Ints
    score: npt.NDArray[np.float64]
    box: npt.NDArray[np.float64] | None
    masks: RunLengths | None
