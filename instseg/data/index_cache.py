"""Indices of large annotation files, kept in a folder between runs.

The folder is ``$INSTSEG_CACHE``, else ``$XDG_CACHE_HOME/instseg``, else ``~/.cache/instseg``. An
index there is used while what it was made from is unchanged:

- the annotation file: where its size, times and inode are as they were, it is not read; else its
  BLAKE2b hash decides;
- the folders of the images: where one has another modification time (a file was added, removed or
  renamed), the index is built anew. Image files are not looked at one by one: one that cannot be
  read is named when its turn comes.

Beyond 16 GiB the indices that were not used for longest are removed, and after a day what builds
that were stopped have left behind. All of it can be removed at any time when no training runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from instseg.data.columns import Columns, ColumnsError, open_columns, write_columns
from instseg.data.index import CocoIndex, OnRecord, build_index

_logger = logging.getLogger(__name__)

MIN_BYTES = 8 << 20
"""Smaller annotation files are read anew each time, which takes a second or two."""

_MAX_TOTAL = 16 << 30
_ABANDONED = 24 * 3600  # seconds
_VERSION = 1  # of the rules and of the columns: a change makes every kept index stale
_TICK = 2_000_000_000  # ns; a file system may give changes that close the same time


def cache_folder() -> Path:
    """Where indices are kept.

    Raises:
        OSError: neither variable is set and there is no home folder.
    """
    if chosen := os.environ.get("INSTSEG_CACHE"):
        return Path(chosen)
    if (base := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(base):
        return Path(base) / "instseg"
    try:
        return Path.home() / ".cache" / "instseg"
    except RuntimeError as error:
        raise OSError(f"no folder for the cache: {error}; set INSTSEG_CACHE") from error


def cached_index(
    annotations: Path,
    image_root: Path,
    read: Callable[[], Mapping[str, Any]],
    *,
    source: str,
    need_masks: bool,
    selection: str = "",
    on_record: OnRecord | None = None,
    min_bytes: int = MIN_BYTES,
) -> CocoIndex:
    """The index of an annotation file, from the cache where there is a valid one.

    Processes may call it side by side: each writes a file of its own, then gives it its name. Where
    the cache cannot be written the index stays in memory, with a warning.

    Args:
        annotations: the annotation file.
        image_root: see `index.build_index`.
        read: reads the file, or a selection of it, where the index must be built.
        source: see `index.build_index`.
        need_masks: see `index.build_index`.
        selection: tells selections of one file apart.
        on_record: see `index.build_index`.
        min_bytes: the index of a smaller annotation file is not kept.

    Raises:
        FileNotFoundError, AnnotationError: see `index.build_index`; and what ``read`` raises.
    """

    def build() -> CocoIndex:
        return build_index(
            read(), image_root, source=source, need_masks=need_masks, on_record=on_record
        )

    if not annotations.is_file() or annotations.stat().st_size < min_bytes:
        return build()
    request = {
        "version": _VERSION,
        "annotations": str(annotations.resolve()),
        "root": str(image_root.resolve()),
        "source": source,
        "need_masks": need_masks,
        "selection": selection,
    }
    try:
        path = cache_folder() / _file_name(annotations, request)
        if (kept := _valid(path, request, annotations)) is not None:
            return CocoIndex(kept)
    except OSError as error:
        _logger.warning("the cache cannot be read, so the index of %s is built: %s", source, error)
    _logger.info("indexing %s; this is done once", source)
    started = time.time_ns()
    stamp, content = _file_stamp(annotations), _hash(annotations)
    index = build()
    columns = index.columns
    columns.meta["request"] = request
    columns.meta["made_from"] = {
        "stamp": stamp if _is_settled(stamp[1], started) else None,
        "hash": content,
        "folders": {
            folder: time_ns if _is_settled(time_ns := _folder_stamp(folder), started) else None
            for folder in columns.meta["folders"]
        },
    }
    try:
        path = cache_folder() / _file_name(annotations, request)
        _store(path, columns)
        _clean_up(path)
        return CocoIndex(open_columns(path, verify=False))
    except (OSError, ColumnsError) as error:
        _logger.warning(
            "the index of %s stays in memory and is built again next time, as it cannot be kept: "
            "%s; set INSTSEG_CACHE to a folder that can be written",
            source,
            error,
        )
        return index


def _file_name(annotations: Path, request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True).encode()
    return f"{annotations.stem[:60]}-{hashlib.blake2b(text, digest_size=10).hexdigest()}.columns"


def _valid(path: Path, request: Mapping[str, Any], annotations: Path) -> Columns | None:
    """The index kept under a name, if it is whole and still true."""
    try:
        columns = open_columns(path)
    except FileNotFoundError:
        return None
    except ColumnsError as error:
        _logger.warning("%s is no index that can be used (%s) and is replaced", path, error)
        return None
    made_from = columns.meta.get("made_from")
    if columns.meta.get("request") != request or made_from is None:
        _logger.warning("%s holds something else and is replaced", path)
        return None
    stamp, now = _file_stamp(annotations), time.time_ns()
    if made_from["stamp"] != stamp and made_from["hash"] != _hash(annotations):
        _logger.info("%s has changed since it was indexed", annotations)
        return None
    for folder, seen in made_from["folders"].items():
        if seen != _folder_stamp(folder):
            _logger.info("%s has changed since its images were indexed", folder)
            return None
    if made_from["stamp"] != stamp and _is_settled(stamp[1], now):
        made_from["stamp"] = stamp
        with suppress(OSError):  # it is hashed again next time
            _store(path, columns)
    with suppress(OSError):  # of a cache that can only be read; the time serves the clean-up
        os.utime(path)
    return columns


def _store(path: Path, columns: Columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write_columns(file, columns.arrays, columns.meta)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # of a cache that several users share
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _clean_up(newest: Path) -> None:
    """Keep the folder within its bounds, and the index that was just written in any case."""
    indices = []
    for path in newest.parent.glob("*.columns*"):
        with suppress(OSError):  # another process cleans up too, or it is another user's
            status = path.stat()
            if path.suffix == ".columns" and path != newest:
                indices.append((status.st_mtime_ns, status.st_size, path))
            elif path.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED:
                path.unlink()
    total = newest.stat().st_size
    for _, size, path in sorted(indices, reverse=True):
        total += size
        if total > _MAX_TOTAL:
            with suppress(OSError):
                path.unlink()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _file_stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _folder_stamp(path: str) -> int:
    """When a file was last added or removed, ns; 0 where there is no such folder."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _is_settled(changed: int, started: int) -> bool:
    """Whether a change after ``started`` is sure to show as another time (both ns)."""
    return changed < started - _TICK
