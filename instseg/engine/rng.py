"""The global random generators of torch, numpy and Python: seeded, stored, kept undisturbed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class RandomScalars(BaseModel):
    """The parts of the generators' states that are not arrays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # numpy does not check it and reads past the key's 624 words for a greater one.
    numpy_pos: Annotated[int, Field(ge=0, le=624)]
    numpy_has_gauss: Annotated[int, Field(ge=0, le=1)]
    numpy_gauss: float
    python_version: int
    python_gauss: float | None


@dataclass(frozen=True)
class RandomState:
    """The states of all global generators that a training can draw from.

    Args:
        tensors: ``torch`` (uint8), ``numpy`` (int64 [624]), ``python`` (int64 [625]) and, when the
            training is on a GPU, ``cuda`` (uint8).
        scalars: the rest.
    """

    tensors: dict[str, Tensor]
    scalars: RandomScalars

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The present states; that of ``device`` too if it is a CUDA device."""
        version, words, gauss = random.getstate()
        numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
        tensors = {
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "python": torch.tensor(words, dtype=torch.int64),
        }
        if device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(device)
        scalars = RandomScalars(
            numpy_pos=int(numpy_state["state"]["pos"]),
            numpy_has_gauss=int(numpy_state["has_gauss"]),
            numpy_gauss=float(numpy_state["gauss"]),
            python_version=version,
            python_gauss=gauss,
        )
        return cls(tensors, scalars)

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], scalars: RandomScalars) -> RandomState:
        """States read from a file.

        Raises:
            ValueError: a tensor is missing, unknown or of the wrong shape or type; the message
                names it.
        """
        shapes = {
            "torch": (torch.uint8, torch.get_rng_state().shape),
            "numpy": (torch.int64, (624,)),
            "python": (torch.int64, (625,)),
        }
        for key, (dtype, shape) in shapes.items():
            tensor = tensors.get(key)
            if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
                found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"'{key}' must be {dtype} {list(shape)}, found {found}")
        unknown = tensors.keys() - shapes.keys() - {"cuda"}
        if unknown:
            raise ValueError(f"unknown {sorted(unknown)}")
        if int(tensors["numpy"].min()) < 0 or int(tensors["numpy"].max()) >= 2**32:
            raise ValueError("'numpy' must hold 32-bit words")
        return cls(dict(tensors), scalars)

    def restore(self, device: torch.device) -> None:
        """Put the generators back into these states.

        Raises:
            ValueError: a generator refuses its state (a damaged or hand-made file).
        """
        scalars = self.scalars
        words = tuple(self.tensors["python"].tolist())
        try:
            random.setstate((scalars.python_version, words, scalars.python_gauss))
            torch.set_rng_state(self.tensors["torch"])
            if device.type == "cuda" and "cuda" in self.tensors:
                torch.cuda.set_rng_state(self.tensors["cuda"], device)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise ValueError(f"a random generator refuses its state: {error}") from error
        np.random.set_state(
            {
                "bit_generator": "MT19937",
                "state": {
                    "key": self.tensors["numpy"].numpy().astype(np.uint32),
                    "pos": scalars.numpy_pos,
                },
                "has_gauss": scalars.numpy_has_gauss,
                "gauss": scalars.numpy_gauss,
            }
        )


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were, whatever the body draws from them."""
    state = RandomState.capture(device)
    try:
        yield
    finally:
        state.restore(device)


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (every device), numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
