"""Kept indices: when they are used, when they are built anew, and what may befall them."""

import errno
import json
import logging
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from instseg.config import build_data
from instseg.config.build_data import read_index
from instseg.config.schema_source import CocoSource
from instseg.data import index_cache
from instseg.data.dataset import DetectionDataset
from instseg.data.image_io import ImageError
from instseg.data.index import CocoIndex
from instseg.data.index_cache import cache_folder, cached_index
from instseg.data.json_stream import stream_coco
from instseg.data.sampling import SampleKey
from instseg.data.transforms import Compose

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("INSTSEG_CACHE", str(folder))
    return folder


def content(name: str = "fig") -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "width": 30, "height": 20, "file_name": f"{'ab'[i % 2]}/{i}.png"}
            for i in range(1, 6)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12,
             "iscrowd": 0, "segmentation": [[1, 2, 4, 2, 4, 6.5]]}
            for i in range(1, 6)
        ],
        "categories": [{"id": 1, "name": name}],
    }  # fmt: skip


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """An annotation file beside the folder ``images``, all unchanged for years."""
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content()))
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    for image in content()["images"]:
        (tmp_path / "images" / image["file_name"]).touch()
    age(path, *(tmp_path / "images" / f for f in ("a", "b", "")))
    return path


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


class Opened:
    """What `open_index` gave, and whether the annotation file was indexed for it."""

    def __init__(self, index: CocoIndex, *, built: bool) -> None:
        self.index = index
        self.built = built


def open_index(annotations: Path, **options: Any) -> Opened:
    reads = []

    def read() -> dict[str, Any]:
        reads.append(1)
        return stream_coco(annotations)

    chosen = {"source": "a.json", "need_masks": True, "min_bytes": 0, **options}
    index = cached_index(annotations, annotations.with_name("images"), read, **chosen)
    return Opened(index, built=bool(reads))


def facts(index: CocoIndex) -> tuple[Any, ...]:
    paths = [record.path for record in index.records]
    return index.coco, index.defects, index.summary(), index.class_names, paths


def test_the_second_time_nothing_is_read(annotations: Path, cache: Path) -> None:
    first, second = open_index(annotations), open_index(annotations)
    assert (first.built, second.built) == (True, False)
    assert facts(first.index) == facts(second.index)
    assert first.index.columns.file == second.index.columns.file == next(cache.iterdir())
    assert len(list(cache.iterdir())) == 1


def test_small_files_are_not_kept(annotations: Path, cache: Path) -> None:
    size = annotations.stat().st_size
    assert [open_index(annotations, min_bytes=size + 1).built for _ in range(2)] == [True, True]
    assert not cache.exists()
    assert [open_index(annotations, min_bytes=size).built for _ in range(2)] == [True, False]


def test_each_use_of_a_file_has_an_index_of_its_own(annotations: Path, cache: Path) -> None:
    uses: list[dict[str, Any]] = [{}, {"need_masks": False}, {"selection": "x"}, {"source": "b"}]
    assert [open_index(annotations, **use).built for use in uses] == [True] * 4
    assert [open_index(annotations, **use).built for use in uses] == [False] * 4
    assert len(list(cache.iterdir())) == 4
    assert not open_index(annotations, need_masks=False).index.records.has_masks


def test_a_new_date_alone_builds_nothing(annotations: Path) -> None:
    open_index(annotations)
    os.utime(annotations)
    assert not open_index(annotations).built


def test_new_content_is_seen_behind_the_same_size_and_date(annotations: Path) -> None:
    open_index(annotations)
    annotations.write_text(json.dumps(content("nut")))
    age(annotations)
    opened = open_index(annotations)
    assert opened.built
    assert opened.index.class_names == ["nut"]
    assert not open_index(annotations).built


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_date(
    annotations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write within one tick of the clock would leave the date as it is."""
    annotations.touch()
    open_index(annotations)
    hashed = []
    monkeypatch.setattr(index_cache, "_hash", lambda path: hashed.append(path) or "other")
    assert open_index(annotations).built
    assert annotations in hashed


@pytest.mark.parametrize("folder", ["a", "b"])
def test_a_removed_image_is_missed_and_named(annotations: Path, folder: str) -> None:
    open_index(annotations)
    gone = next((annotations.parent / "images" / folder).iterdir())
    gone.unlink()
    opened = open_index(annotations)
    assert opened.built
    (defect,) = opened.index.defects
    assert defect.code == "image-missing"
    assert str(gone) in defect.message
    gone.touch()
    assert len(open_index(annotations).index.records) == 5


def test_an_image_whose_folder_was_not_there_is_found_later(annotations: Path) -> None:
    later = content()
    later["images"][0]["file_name"] = "new/deep/1.png"
    annotations.write_text(json.dumps(later))
    age(annotations)
    assert len(open_index(annotations).index.records) == 4
    assert not open_index(annotations).built
    file = annotations.parent / "images" / "new" / "deep" / "1.png"
    file.parent.mkdir(parents=True)
    file.touch()
    assert len(open_index(annotations).index.records) == 5


def test_an_image_lost_after_opening_is_named(annotations: Path) -> None:
    open_index(annotations)
    records = open_index(annotations).index.records
    dataset = DetectionDataset(records, Compose([]), seed=0, with_masks=True)
    records.path(2).unlink()
    with pytest.raises(ImageError, match=r"3\.png"):
        dataset[SampleKey(0, 2)]


def test_a_folder_changed_a_moment_ago_is_looked_at_again(annotations: Path) -> None:
    os.utime(annotations.parent / "images" / "a")
    assert open_index(annotations).built
    assert open_index(annotations).built
    age(annotations.parent / "images" / "a")
    assert [open_index(annotations).built for _ in range(2)] == [True, False]


def test_a_missing_root_is_an_error_though_the_index_is_kept(annotations: Path) -> None:
    open_index(annotations)
    (annotations.parent / "images").rename(annotations.parent / "moved")
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        open_index(annotations)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b"PK\x03\x04" + b[4:],
        lambda b: b[:-200] + bytes(200),
        lambda b: b[:30] + b"\xff" + b[31:],
    ],
)
def test_damaged_indices_are_built_anew(
    annotations: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    first = open_index(annotations)
    path = first.index.columns.file
    assert path is not None
    expected = facts(first.index)
    whole = path.read_bytes()
    path.unlink()  # the mapped file stays as it is
    path.write_bytes(damage(whole))
    opened = open_index(annotations)
    assert opened.built
    assert facts(opened.index) == expected
    (message,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert str(path) in message
    assert "is replaced" in message
    assert not open_index(annotations).built


def test_an_index_of_something_else_is_replaced(
    annotations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = open_index(annotations).index.columns.file
    other = open_index(annotations, need_masks=False).index.columns.file
    assert one is not None
    assert other is not None
    os.replace(one, other)
    opened = open_index(annotations, need_masks=False)
    assert opened.built
    assert not opened.index.records.has_masks
    assert "holds something else" in caplog.text


def test_an_unwritable_cache_is_done_without(
    annotations: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        opened = open_index(annotations)
        assert opened.built
        assert opened.index.columns.file is None
        assert len(opened.index.records) == 5
    assert "set INSTSEG_CACHE to a folder that can be written" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    annotations: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(file: Any, arrays: Any, meta: Any) -> None:
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(index_cache, "write_columns", full)
    assert len(open_index(annotations).index.records) == 5
    assert "No space left" in caplog.text
    assert list(cache.iterdir()) == []


def test_builds_side_by_side_do_no_harm(annotations: Path, cache: Path) -> None:
    barrier = Barrier(4)

    def build(_: int) -> Opened:
        barrier.wait()
        return open_index(annotations)

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(build, range(4)))
    assert len({str(facts(o.index)) for o in opened}) == 1
    assert len({o.index.columns.identity for o in opened}) == 1
    assert len(list(cache.iterdir())) == 1
    assert not open_index(annotations).built


def test_the_cache_is_bounded(
    annotations: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for i in range(3):
        file = open_index(annotations, selection=str(i)).index.columns.file
        assert file is not None
        files.append(file)
    size = files[0].stat().st_size
    foreign, stale, fresh = (
        cache / name for name in ("notes.txt", "x.columnsabc.tmp", "y.columnsabc.tmp")
    )
    for file in (foreign, stale, fresh):
        file.write_bytes(bytes(3 * size))
    age(foreign, stale, *files)
    assert not open_index(annotations, selection="1").built  # which makes it the newest
    monkeypatch.setattr(index_cache, "_MAX_TOTAL", 2 * size + size // 2)
    last = open_index(annotations, selection="3").index.columns.file
    assert set(cache.iterdir()) == {files[1], last, foreign, fresh}
    monkeypatch.setattr(index_cache, "_MAX_TOTAL", 0)
    last = open_index(annotations, selection="4").index.columns.file
    assert set(cache.iterdir()) == {last, foreign, fresh}
    assert not open_index(annotations, selection="4").built


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("INSTSEG_CACHE", "/here")
    assert cache_folder() == Path("/here")
    monkeypatch.delenv("INSTSEG_CACHE")
    assert cache_folder() == Path("/elsewhere/instseg")
    for unset in ("", "relative"):  # the XDG specification has relative paths ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path("/home/someone/.cache/instseg")


def test_without_any_home_the_index_stays_in_memory(
    annotations: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INSTSEG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert open_index(annotations).index.columns.file is None
    assert "set INSTSEG_CACHE" in caplog.text


def test_selections_of_a_configured_file_are_kept_apart(
    annotations: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_data, "MIN_BYTES", 0)

    def names(**options: Any) -> list[str]:
        source = CocoSource(
            format="coco",
            annotations=annotations,
            images=annotations.with_name("images"),
            **options,
        )
        return [record.path.name for record in read_index(source, need_masks=True).records]

    fold = {"folds": 2, "index": 0}
    wanted: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["1.png", "2.png", "3.png", "4.png", "5.png"]),
        ({"include": ["a/*"]}, ["2.png", "4.png"]),
        ({"exclude": ["*/4.png"]}, ["1.png", "2.png", "3.png", "5.png"]),
        # Sorted names: a/2 a/4 b/1 b/3 b/5; every second, from the first on, is held out.
        ({"fold": {**fold, "part": "val"}}, ["1.png", "2.png", "5.png"]),
        ({"fold": {**fold, "part": "train"}}, ["3.png", "4.png"]),
    ]
    for _ in range(2):
        for options, expected in wanted:
            assert names(**options) == expected
        assert len(list(cache.iterdir())) == len(wanted)


def test_using_an_index_marks_it_as_used(annotations: Path) -> None:
    file = open_index(annotations).index.columns.file
    assert file is not None
    age(file)
    open_index(annotations)
    assert file.stat().st_mtime > time.time() - 3600


def test_an_equal_index_built_meanwhile_does_not_disturb_workers(
    annotations: Path, cache: Path
) -> None:
    """A spawned worker opens the file that its training has; another run has built it anew."""
    first = open_index(annotations)
    sent = pickle.dumps(first.index.records)
    (annotations.parent / "images" / "a" / "new.txt").touch()
    second = open_index(annotations)
    assert second.built
    assert pickle.loads(sent)[0].path == first.index.records[0].path


def test_a_file_with_a_new_date_is_hashed_once(
    annotations: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_index(annotations)
    os.utime(annotations, (LONG_AGO + 5, LONG_AGO + 5))
    hashed = []
    original = index_cache._hash
    monkeypatch.setattr(index_cache, "_hash", lambda path: hashed.append(path) or original(path))
    assert [open_index(annotations).built for _ in range(3)] == [False] * 3
    assert len(hashed) == 1
