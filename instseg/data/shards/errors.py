"""What can go wrong with shards, apart from a decoder's errors."""

from __future__ import annotations

from pathlib import Path


class ShardError(ValueError):
    """A shard, or a file beside it, that cannot be used; names the shard and the member."""

    def __init__(self, shard: str | Path, reason: str, member: str = "") -> None:
        name = f"{shard}#{member}" if member else str(shard)
        super().__init__(f"{name}: {reason}")


class FetchError(RuntimeError):
    """A place that does not answer, after some tries.

    No `OSError` or `ValueError`, which an image counts as unreadable by: a network that is down
    must end a training, not make it skip images.
    """
