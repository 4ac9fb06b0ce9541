"""Write a COCO data set as shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from instseg.data.coco import SECTIONS, AnnotationError
from instseg.data.defects import Defect, Severity
from instseg.data.replacing import replacing
from instseg.data.screening import locate_images, screen_head
from instseg.data.shards.index import IMAGE_SUFFIXES, MAX_JSON, build_index, index_path, save_index
from instseg.data.shards.open import DATASET_FILE, DatasetFile, ShardEntry
from instseg.data.shards.tar import BLOCK, MAX_MEMBER
from instseg.data.tiff import split_page


@dataclass(frozen=True)
class _Item:
    """An image file, and the content of its ``KEY.json``."""

    file: Path
    size: int
    record: bytes

    def tar_bytes(self) -> int:
        """What the two members take in a tar: each a header, and content in whole blocks."""
        return sum(BLOCK + size + -size % BLOCK for size in (self.size, len(self.record)))


def write_shards(
    coco: Mapping[str, Any],
    image_root: Path,
    output: Path,
    *,
    source: str,
    shard_bytes: int = 2**28,
    shuffle_seed: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetFile:
    """Write the images as they are, and every key of their records, so that nothing is lost.

    `dataset.json` is written last: without it a folder is no data set, and can be written again.

    Args:
        coco: from `coco.load_coco`.
        image_root: the folder that ``file_name`` is relative to.
        output: the folder to write, made if need be; it has no data set.
        source: the annotation file's name, for messages.
        shard_bytes: a shard is closed before an image would take it over this size, in bytes; the
            tar's end adds up to 10 KiB.
        shuffle_seed: write the images in a random order, by this seed; None keeps the order.
        on_progress: called with (images written, images in all) after each shard.

    Returns:
        What `dataset.json` says.

    Raises:
        AnnotationError: an image or its file cannot be used, or an annotation has no image.
        FileExistsError: there is a data set in ``output``.
        OSError: a file cannot be read or written; finished shards stay.
    """
    if (output / DATASET_FILE).exists():
        raise FileExistsError(f"{output}: there is a data set already; name another folder")
    items = _items(coco, image_root, source)
    if shuffle_seed is not None:
        items = [items[i] for i in np.random.default_rng(shuffle_seed).permutation(len(items))]
    output.mkdir(parents=True, exist_ok=True)
    entries: list[ShardEntry] = []
    for group in _groups(items, shard_bytes):
        shard = output / f"shard-{len(entries):06d}.tar"
        _write_tar(shard, items, group)
        with shard.open("rb") as file:
            index = build_index(file, str(shard))
        save_index(index, index_path(shard))
        entries.append(ShardEntry(shard.name, index.sha256))
        if on_progress is not None:
            on_progress(group.stop, len(items))
    other = {key: value for key, value in coco.items() if key not in SECTIONS}
    dataset = DatasetFile(coco["categories"], entries, other)
    with replacing(output / DATASET_FILE) as file:
        file.write(_json(msgspec.to_builtins(dataset), source, "a section"))
    return dataset


def _items(coco: Mapping[str, Any], image_root: Path, source: str) -> list[_Item]:
    """What is to be written, after a check that all of it can be."""
    head = screen_head(coco, source)
    paths, defects = locate_images(head.images, image_root, source=source)
    _refuse([*head.defects, *defects], source)
    annotations: dict[int, list[Any]] = defaultdict(list)
    for i, annotation in enumerate(coco["annotations"]):
        owner = annotation.get("image_id") if isinstance(annotation, dict) else None
        if type(owner) is not int or owner not in paths:
            raise AnnotationError(
                f"{source}: annotations[{i}] has the image {owner!r:.40}, which is not among the "
                "images; `instseg dataset check` lists all such defects"
            )
        annotations[owner].append(annotation)
    items = []
    for image in coco["images"]:
        where = f"image {image['id']}"
        record = {"image": image, "annotations": annotations[image["id"]]}
        text = _json(record, source, where)
        file = paths[image["id"]]
        problem = _problem(file, len(text))
        if problem:
            raise AnnotationError(f"{source}: {where}: {problem}")
        items.append(_Item(file, file.stat().st_size, text))
    return items


def _refuse(defects: Sequence[Defect], source: str) -> None:
    """The first error, if any: an image left out could not be found again."""
    errors = [defect for defect in defects if defect.severity is Severity.ERROR]
    if errors:
        raise AnnotationError(
            f"{source}: {errors[0].message}; mend or remove such records first ("
            f"{len(errors)} in all: `instseg dataset check` lists them)"
        )


def _problem(file: Path, record_bytes: int) -> str:
    """Why an image cannot be a member of a shard; empty where it can."""
    if split_page(file)[1] is not None:
        return f"{file} is a page of a stack; save it as a file of its own"
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return f"{file} does not end in one of {', '.join(IMAGE_SUFFIXES)}"
    if file.stat().st_size > MAX_MEMBER:
        return f"{file} is larger than {MAX_MEMBER} bytes"
    return f"its records are over {MAX_JSON} bytes" if record_bytes > MAX_JSON else ""


def _json(value: object, source: str, where: str) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError as error:
        raise AnnotationError(f"{source}: {where} has a number that is not finite") from error


def _groups(items: list[_Item], shard_bytes: int) -> Iterator[range]:
    """The items of each shard: as many as fit, but at least one."""
    start, total = 0, 0
    for i, item in enumerate(items):
        size = item.tar_bytes()
        if i > start and total + size > shard_bytes:
            yield range(start, i)
            start, total = i, 0
        total += size
    if items:
        yield range(start, len(items))


def _write_tar(shard: Path, items: list[_Item], group: range) -> None:
    """The members of a shard; equal input gives equal bytes."""
    with (
        replacing(shard) as output,
        tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for i in group:
            item, key = items[i], f"{i:09d}"
            for suffix, content in (
                (item.file.suffix.lower(), item.file.read_bytes()),
                (".json", item.record),
            ):
                header = tarfile.TarInfo(key + suffix)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
