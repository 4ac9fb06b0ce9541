"""Sets in other places than a folder that can be written to."""

import os
from pathlib import Path

import pytest

from instseg.data.image_io import read_image
from instseg.data.shards import remote
from instseg.data.shards.errors import FetchError
from instseg.data.shards.members import open_image
from instseg.data.shards.open import open_shards
from instseg.data.shards.writer import write_shards
from tests.data.shard_set import NAMES, serving

from .helpers import member_paths


def check_reads(shards, images: Path) -> None:
    for name, path in member_paths(shards).items():
        assert open_image(path).read() == (images / name).read_bytes()


def test_a_folder_that_cannot_be_written_to(own, tmp_path, monkeypatch):
    coco, images, folder = own
    for index in folder.glob("*.index"):
        index.unlink()
    before = sorted(folder.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    shards = open_shards(str(folder), cache=tmp_path / "cache")
    assert shards.coco()["images"] == coco["images"]
    check_reads(shards, images)
    assert sorted(folder.iterdir()) == before
    assert shards.folder.parent == tmp_path / "cache"


def test_an_object_store_by_fsspec(written, tmp_path):
    import fsspec

    coco, images, folder = written
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe(f"/bucket/set/{path.name}", path.read_bytes())
    shards = open_shards("memory://bucket/set/", cache=tmp_path)
    assert shards.coco()["images"] == coco["images"]
    check_reads(shards, images)
    download = open_shards("memory://bucket/set", cache=tmp_path / "b", download=True)
    check_reads(download, images)


def test_byte_ranges_over_http(written, tmp_path):
    coco, images, folder = written
    with serving(folder) as server:
        shards = open_shards(server.url, cache=tmp_path)
        assert shards.coco()["images"] == coco["images"]
        # The indexes lie beside the shards: nothing of these is read.
        names = [f"/{path.name}" for path in sorted(folder.glob("*.tar"))]
        assert server.requests == [
            ("/dataset.json", None),
            *((f"{name}.index", None) for name in names),
        ]
        server.requests.clear()
        check_reads(shards, images)
        assert len(server.requests) == len(NAMES)
        assert all(path in names and wanted for path, wanted in server.requests)
        server.requests.clear()
        open_shards(server.url, cache=tmp_path)
        assert server.requests == [("/dataset.json", None)]


def test_indexes_of_remote_shards_are_built_where_there_are_none(own, tmp_path):
    _, images, folder = own
    for index in folder.glob("*.index"):
        index.unlink()
    with serving(folder) as server:
        check_reads(open_shards(server.url, cache=tmp_path / "cache"), images)
        assert ("/shard-000002.tar", None) in server.requests


def test_downloads_stay_within_their_bound(written, tmp_path):
    _, images, folder = written
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    with serving(folder) as server:
        bound = max(sizes) * 2
        shards = open_shards(server.url, cache=tmp_path, download=True, max_cache_bytes=bound)
        downloads = shards.folder / "downloads"
        server.requests.clear()
        for _ in range(2):
            for name, path in member_paths(shards).items():
                assert open_image(path).read() == (images / name).read_bytes()
                assert sum(p.stat().st_size for p in downloads.glob("*.tar*")) <= bound
        # Not all shards fit, and the images were asked for in their order, twice.
        assert server.requests == [(f"/shard-{i % 4:06d}.tar", None) for i in range(8)]
        server.requests.clear()
        last = list(member_paths(shards).values())[-1]
        open_image(last).read()
        assert server.requests == []


def test_a_changed_remote_set_is_read_anew(own, tmp_path):
    coco, images, folder = own
    with serving(folder) as server:
        options = {"cache": tmp_path / "cache", "download": True}
        check_reads(open_shards(server.url, **options), images)
        for path in folder.iterdir():
            path.unlink()
        write_shards(coco, images, folder, source="c", shard_bytes=14_000, shuffle_seed=3)
        shards = open_shards(server.url, **options)
        assert shards.coco()["images"] != coco["images"]
        check_reads(shards, images)


def test_failures_that_pass_are_tried_again(written, tmp_path, caplog):
    _, images, folder = written
    with serving(folder) as server:
        server.failures = 3
        shards = open_shards(server.url, cache=tmp_path)
        assert caplog.text.count("HTTP status 503") == 3
        server.failures = 2
        check_reads(shards, images)


def test_a_place_that_does_not_answer_is_no_bad_image(written, tmp_path):
    *_, folder = written
    with serving(folder) as server:
        path = member_paths(open_shards(server.url, cache=tmp_path))["a.jpg"]
        server.failures = 4
        with pytest.raises(FetchError, match=r"shard-000000\.tar.*after 4 tries .*503"):
            read_image(path)
        server.ranges = False
        with pytest.raises(FetchError, match="gives no parts of files; set download: true"):
            read_image(path)
        with pytest.raises(FetchError, match=r"nowhere/dataset\.json: cannot be read .*404"):
            open_shards(f"{server.url}/nowhere", cache=tmp_path)
    with pytest.raises(FetchError, match="after 4 tries"):
        read_image(path)
    with pytest.raises(FetchError, match="nosuch://bucket"):
        open_shards("nosuch://bucket/set", cache=tmp_path)


def test_answers_that_break_off_are_fetched_again(tmp_path):
    content = bytes(range(250)) * 4
    (tmp_path / "file").write_bytes(content)
    with serving(tmp_path) as server:
        url = f"{server.url}/file"
        for read in (
            lambda: remote.read_whole(url, 10_000),
            lambda: remote.read_range(url, 0, 1000),
            lambda: remote.with_stream(url, lambda file: file.read(600) + file.read(600)),
        ):
            server.breaks = 3
            assert read() == content
            server.breaks = 4
            with pytest.raises(FetchError, match=r"after 4 tries \(the connection ended 500 bytes"):
                read()
