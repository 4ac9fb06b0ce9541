"""From a section ``format: shards`` to an opened data set."""

from __future__ import annotations

from instseg.config.index_progress import indexing_bar
from instseg.config.schema_source import ShardsSource
from instseg.data.index_cache import cache_folder
from instseg.data.shards.open import ShardSet, open_shards


def open_shard_source(source: ShardsSource) -> ShardSet:
    """Open the data set; its downloads and, of a remote one, its indexes are below the cache.

    Raises:
        ShardError, FetchError, OSError: see `instseg.data.shards.open.open_shards`.
    """
    with indexing_bar(source.folder) as on_progress:
        return open_shards(
            source.folder,
            cache=cache_folder() / "shards",
            download=source.download,
            max_cache_bytes=int(source.cache_gib * 2**30),
            on_progress=on_progress,
        )
