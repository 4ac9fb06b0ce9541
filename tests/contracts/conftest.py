"""Every test of an op's contract runs once with each backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from instseg.ops import available_backends, use_backend
from instseg.ops.backend import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that ops run on within the test."""
    if request.param not in available_backends("cpu"):
        pytest.skip(f"the {request.param} backend does not work here")
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads may be changed within the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
