"""From a data set of shards to a COCO dictionary; indexes are built where there are none."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from instseg.data.replacing import keep_file, replacing
from instseg.data.shards.errors import FetchError, ShardError
from instseg.data.shards.index import (
    INDEX_SUFFIX,
    Sample,
    build_index,
    cached_table,
    index_path,
    load_samples,
    load_table,
    save_index,
)
from instseg.data.shards.members import member_name
from instseg.data.shards.remote import is_url, read_whole, with_stream
from instseg.data.shards.store import Mirror, download_path, folder_lock, write_mirror

_logger = logging.getLogger(__name__)

DATASET_FILE = "dataset.json"
MEMBER_KEY = "shard_member"
"""The key of an image record that has the image's name as a member, see `name_members`."""

_MAX_DATASET_FILE = 2**26
_MAX_INDEX = 2**30
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.tar")


class ShardEntry(msgspec.Struct):
    """A shard as listed in `dataset.json`: its file name, and the SHA-256 of the file."""

    name: str
    sha256: str


class DatasetFile(msgspec.Struct):
    """The content of `dataset.json`.

    Args:
        categories: as in COCO.
        shards: in the order of their images.
        other: COCO's other sections, such as ``info`` and ``licenses``.
    """

    categories: list[Any]
    shards: list[ShardEntry]
    other: dict[str, Any] = {}


class ShardSet:
    """A data set of shards, all of whose indexes are there.

    Args:
        folder: the local folder in which its images are read by name; it has `DATASET_FILE`.
        dataset: what that file says.
    """

    def __init__(self, folder: Path, dataset: DatasetFile) -> None:
        self.folder = folder
        self.dataset = dataset

    def coco(self) -> dict[str, Any]:
        """The COCO dictionary that was written, annotations in the order of their images."""
        return self._coco(lambda entry, sample: sample.image)

    def coco_with_members(self) -> dict[str, Any]:
        """`coco` with one key more for each image, `MEMBER_KEY`: its name as a member.

        So that images can be chosen by their own file names before `name_members` replaces these.
        """
        return self._coco(
            lambda entry, sample: {
                **sample.image,
                MEMBER_KEY: member_name(entry.name, sample.member),
            }
        )

    def _coco(self, image_of: Callable[[ShardEntry, Sample], dict[str, Any]]) -> dict[str, Any]:
        images, annotations = [], []
        for entry in self.dataset.shards:
            for sample in load_samples(index_path(self.folder / entry.name)):
                images.append(image_of(entry, sample))
                annotations += sample.annotations
        return {
            **self.dataset.other,
            "images": images,
            "annotations": annotations,
            "categories": self.dataset.categories,
        }


def name_members(coco: dict[str, Any]) -> dict[str, Any]:
    """A dictionary from `ShardSet.coco_with_members`, each ``file_name`` that of the member."""
    images = [{**image, "file_name": image[MEMBER_KEY]} for image in coco["images"]]
    return {**coco, "images": images}


def open_shards(
    location: str,
    *,
    cache: Path,
    download: bool = False,
    max_cache_bytes: int = 20 * 2**30,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardSet:
    """Open a data set that `writer.write_shards` wrote.

    Indexes of shards that have none are built, which reads them once. They are kept beside the
    shards or, where these are remote or cannot be written to, below ``cache``.

    Args:
        location: a folder, or its address (``http://...``; ``s3://...``, ``gs://...`` and others
            by fsspec and the package that it needs for each).
        cache: a local folder for the indexes and the downloaded shards of remote data sets.
        download: of a remote data set download whole shards, instead of reading byte ranges.
        max_cache_bytes: what its downloaded shards may take; the oldest make room.
        on_progress: called with (shards opened, shards in all) after each shard.

    Raises:
        ShardError: a file of the data set cannot be used; names it, and the member.
        FetchError: the place does not answer.
        OSError: a file cannot be read or written.
    """
    location = location.rstrip("/")
    content = _read_dataset_file(location)
    dataset = _parse_dataset_file(content, f"{location}/{DATASET_FILE}")
    place = _place(location, cache)
    if place.url is not None:
        keep_file(place.folder / DATASET_FILE, content)
        write_mirror(place.folder, Mirror(place.url, download, max_cache_bytes))
    for done, entry in enumerate(dataset.shards, start=1):
        _provide_index(place, entry)
        if on_progress is not None:
            on_progress(done, len(dataset.shards))
    return ShardSet(place.folder, dataset)


@dataclass(frozen=True)
class _Place:
    """The local folder in which reading takes place, and the address that it mirrors, if any."""

    folder: Path
    url: str | None


def _read_dataset_file(location: str) -> bytes:
    if is_url(location):
        url = f"{location}/{DATASET_FILE}"
        try:
            return read_whole(url, _MAX_DATASET_FILE)
        except (FileNotFoundError, PermissionError) as error:
            raise FetchError(f"{url}: cannot be read ({error}); is the address right?") from error
    path = Path(location) / DATASET_FILE
    if not path.is_file():
        text = "there is no such file; `instseg dataset shard` writes it last, after all shards"
        raise ShardError(path, text)
    if path.stat().st_size > _MAX_DATASET_FILE:
        raise ShardError(path, f"longer than {_MAX_DATASET_FILE} bytes")
    return path.read_bytes()


def _parse_dataset_file(content: bytes, name: str) -> DatasetFile:
    try:
        dataset = msgspec.json.decode(content, type=DatasetFile)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ShardError(name, f"not usable: {error}") from error
    names = [entry.name for entry in dataset.shards]
    for shard in names:
        if not _SHARD_NAME.fullmatch(shard):
            raise ShardError(name, f"the shard {shard!r:.80} is no plain file name NAME.tar")
        if names.count(shard) > 1:
            raise ShardError(name, f"the shard {shard} is listed twice")
    return dataset


def _place(location: str, cache: Path) -> _Place:
    """The data set's own folder, or its mirror where that is remote or cannot be written to."""
    if not is_url(location):
        folder = Path(location).resolve()
        if os.access(folder, os.W_OK) or all(
            index_path(shard).is_file() for shard in folder.glob("*.tar")
        ):
            return _Place(folder, None)
        location = f"file://{folder}"
    mirror = cache.absolute() / hashlib.sha256(location.encode()).hexdigest()[:16]
    mirror.mkdir(parents=True, exist_ok=True)
    return _Place(mirror.resolve(), location)


def _provide_index(place: _Place, entry: ShardEntry) -> None:
    """See to it that the local folder has the index of a shard."""
    shard = place.folder / entry.name
    if place.url is None and not shard.is_file():
        raise ShardError(shard, f"there is no such file, but {DATASET_FILE} lists it")
    if not shard.resolve().is_relative_to(place.folder):
        text = f"is a link to {shard.resolve()}; name the folder it points to"
        raise ShardError(shard, text)
    if _has_index(shard, entry):
        return
    with folder_lock(place.folder):  # of many processes one does the work
        if place.url is not None and not _has_index(shard, entry):
            _fetch_index(f"{place.url}/{entry.name}", shard)
        if not _has_index(shard, entry):
            _build_index(place, entry)
    cached_table.cache_clear()


def _has_index(shard: Path, entry: ShardEntry) -> bool:
    """Whether there is an index that fits the shard."""
    try:
        sha256, table = load_table(index_path(shard))
    except FileNotFoundError:
        return False
    except ShardError as error:
        _logger.warning("%s", error)
        return False
    is_whole = not shard.exists() or shard.stat().st_size == table.shard_size
    return is_whole and sha256 == entry.sha256


def _fetch_index(url: str, shard: Path) -> None:
    """Fetch the index that lies beside a remote shard, if there is one."""
    download_path(shard).unlink(missing_ok=True)  # of when the shard was another
    try:
        content = read_whole(url + INDEX_SUFFIX, _MAX_INDEX)
    except (FileNotFoundError, PermissionError):  # some stores forbid what is not there
        _logger.info("%s has no index beside it: reading the whole shard to make one", url)
        return
    with replacing(index_path(shard)) as file:
        file.write(content)


def _build_index(place: _Place, entry: ShardEntry) -> None:
    if place.url is None:
        shard = str(place.folder / entry.name)
        with open(shard, "rb") as file:
            index = build_index(file, shard)
    else:
        shard = f"{place.url}/{entry.name}"
        try:
            index = with_stream(shard, lambda file: build_index(file, shard))
        except (FileNotFoundError, PermissionError) as error:
            raise FetchError(f"{shard}: {error}") from error
    if index.sha256 != entry.sha256:
        text = f"is not the file that {DATASET_FILE} lists (its SHA-256 differs); copy it again"
        raise ShardError(shard, text)
    save_index(index, index_path(place.folder / entry.name))
