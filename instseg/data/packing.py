"""Whatever a worker has made, as one block of shared memory on its way to the training process.

Torch sends each tensor as a file descriptor of its own and all else (polygons, paths) through a
pipe. A message longer than the pipe's atomic unit (4096 bytes on Linux, POSIX's ``PIPE_BUF``)
arrives in parts, and a worker killed between two of them leaves a reader that waits for the rest
for good. One block makes one descriptor and a message of some hundred bytes, which is there whole
or not at all.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NO_ARRAY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}  # numpy lacks these
_ALIGNMENT = 64  # of each array in the block: a cache line


@dataclass(frozen=True, eq=False)
class Packed:
    """Any object that pickle can send; arrays and CPU tensors are copied once, into the block.

    Args:
        block: ``uint8 [n]``: the number of parts and each one's length in bytes as ``int64``, then
            the parts: the pickled object, and the memory of its arrays and tensors.
    """

    block: Tensor

    @classmethod
    def pack(cls, content: object) -> Packed:
        """Copy ``content`` into one new block of shared memory."""
        buffers: list[pickle.PickleBuffer] = []
        text = io.BytesIO()
        _Pickler(text, protocol=5, buffer_callback=buffers.append).dump(content)
        parts = [text.getbuffer(), *(buffer.raw() for buffer in buffers)]
        head = np.array([len(parts), *(part.nbytes for part in parts)], dtype=np.int64)
        starts = _starts(head)
        block = torch.empty(starts[-1], dtype=torch.uint8).share_memory_()
        memory = block.numpy()
        memory[: head.nbytes] = head.view(np.uint8)
        for start, part in zip(starts, parts, strict=False):
            memory[start : start + part.nbytes] = np.frombuffer(part, np.uint8)
        return cls(block)

    def unpack(self) -> Any:
        """The object; its arrays and tensors are views of the block, and can be written to."""
        memory = self.block.numpy()
        count = int(memory[:8].view(np.int64)[0])
        head = memory[: 8 * (count + 1)].view(np.int64)
        spans = zip(_starts(head), head[1:].tolist(), strict=False)
        text, *buffers = (memory[start : start + length] for start, length in spans)
        # What this program's own worker process has just pickled: nothing from outside.
        return pickle.loads(text.data, buffers=buffers)  # noqa: S301

    def pin_memory(self) -> Packed:
        """The same in page-locked memory; torch's loader calls it."""
        return Packed(self.block.pin_memory())


def _starts(head: np.ndarray) -> list[int]:
    """Where each part begins in the block, and where the block ends."""
    lengths = [head.nbytes, *head[1:].tolist()]
    return list(accumulate(-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths))


class _Pickler(pickle.Pickler):
    """Hands out plain CPU tensors' memory as it does that of arrays."""

    def reducer_override(self, value: Any) -> Any:
        plain = type(value) is Tensor and value.device.type == "cpu" and not value.requires_grad
        if plain and value.dtype not in _NO_ARRAY:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented
