"""COCO annotation files read a piece at a time, for those too large to hold as Python objects."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from instseg.data.coco import AnnotationError, load_coco

_PIECE = 4096  # records decoded together


class _Sections(msgspec.Struct):
    """Parts of the file's text, not yet decoded."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class RecordStream:
    """A list of a JSON file whose records are decoded as one walks along it.

    Args:
        texts: the records' JSON.
        path: the file, for messages.
    """

    def __init__(self, texts: list[msgspec.Raw], path: Path) -> None:
        self._texts = texts
        self._path = path

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Any]:
        texts = iter(self._texts)
        while piece := b",".join(islice(texts, _PIECE)):
            try:
                records = json.loads(b"[" + piece + b"]")
            except (ValueError, RecursionError) as error:
                raise AnnotationError(f"{self._path}: cannot be read as JSON: {error}") from error
            yield from records


def stream_coco(path: str | Path) -> dict[str, Any]:
    """As `coco.load_coco`, but ``annotations`` is a `RecordStream`: it has a length, and can be
    walked along any number of times.

    A file that the quick reader refuses, for ``NaN`` or a syntax error, is left to `load_coco`,
    whose list or message it gives.

    Raises:
        FileNotFoundError, AnnotationError: see `load_coco`; a record may also raise when its turn
            comes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sections = msgspec.json.decode(text, type=_Sections)
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # msgspec's errors and an empty file's are ValueErrors
        return load_coco(path)
    streams = {
        name: RecordStream(getattr(sections, name), path) for name in _Sections.__struct_fields__
    }
    return {
        "images": list(streams["images"]),
        "annotations": streams["annotations"],
        "categories": list(streams["categories"]),
    }
