"""Data sets in shards, and requests that are repeated at once."""

import pytest

from instseg.data.shards import remote
from tests.data.shard_set import write_set


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def own(tmp_path):
    """A data set that the test may change."""
    return write_set(tmp_path)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
