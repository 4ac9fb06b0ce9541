"""Data sets in tar shards: nothing is lost, any place reads alike, bad files are named."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instseg.config.build_data import read_index
from instseg.config.schema_source import CocoSource, FoldConfig, ShardsSource
from instseg.data.coco import AnnotationError
from instseg.data.epoch_order import Shuffle
from instseg.data.image_io import ImageError, image_size, read_image
from instseg.data.shards import remote
from instseg.data.shards.errors import FetchError, ShardError
from instseg.data.shards.index import build_index, index_path, load_samples, load_table
from instseg.data.shards.members import open_image, split_member
from instseg.data.shards.open import MEMBER_KEY, open_shards
from instseg.data.shards.order import ByShard, shard_numbers
from instseg.data.shards.tar import MAX_MEMBER
from instseg.data.shards.writer import write_shards
from tests.data.shard_set import NAMES, make_coco, serving, write_set


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


def by_id(annotations) -> list:
    return sorted(annotations, key=lambda a: a["id"])


def member_paths(shards) -> dict[str, Path]:
    """The path of each image by its own file name."""
    images = shards.coco_with_members()["images"]
    return {image["file_name"]: shards.folder / image[MEMBER_KEY] for image in images}


def test_coco_to_shards_to_coco(written, tmp_path):
    coco, _, folder = written
    back = open_shards(str(folder), cache=tmp_path).coco()
    for key in ("info", "licenses", "images", "categories"):
        assert back[key] == coco[key]
    assert by_id(back["annotations"]) == by_id(coco["annotations"])
    assert set(back) == set(coco)


def test_each_sample_is_an_image_file_and_its_json(written):
    coco, images, folder = written
    expected = iter(coco["images"])
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar]
        for (image, content), (text, record) in zip(members[::2], members[1::2], strict=True):
            record, wanted = json.loads(record), next(expected)
            key, dot, suffix = image.partition(".")  # WebDataset's key ends at the first dot
            assert text == f"{key}.json"
            assert f"{dot}{suffix}" == Path(wanted["file_name"]).suffix.lower()
            assert content == (images / wanted["file_name"]).read_bytes()
            assert record["image"] == wanted
            assert {a["image_id"] for a in record["annotations"]} <= {wanted["id"]}
    assert next(expected, None) is None


def test_the_webdataset_library_reads_the_shards(written):
    webdataset = pytest.importorskip("webdataset")
    coco, images, folder = written
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [json.loads(sample["json"])["image"] for sample in samples] == coco["images"]
    first = images / coco["images"][0]["file_name"]
    assert samples[0]["jpg"] == first.read_bytes()


def test_shards_are_full_and_the_same_each_time(written, tmp_path):
    coco, images, folder = written
    again = write_shards(coco, images, tmp_path / "a", source="c", shard_bytes=14_000)
    assert len(again.shards) == 4
    for entry in again.shards:
        one, two = (place / entry.name for place in (folder, tmp_path / "a"))
        assert one.read_bytes() == two.read_bytes()
        with tarfile.open(one) as tar:
            content = sum(len(m.tobuf()) + m.size + -m.size % 512 for m in tar)
        assert content <= 14_000
    whole = write_shards(coco, images, tmp_path / "b", source="c")
    assert len(whole.shards) == 1
    single = write_shards(coco, images, tmp_path / "c", source="c", shard_bytes=1)
    assert len(single.shards) == len(NAMES)


def test_a_shuffled_set_has_the_same_records(written, tmp_path):
    coco, images, _ = written
    for name in ("a", "b"):
        write_shards(coco, images, tmp_path / name, source="c", shuffle_seed=1)
    one, two = (open_shards(str(tmp_path / name), cache=tmp_path).coco() for name in ("a", "b"))
    assert one == two
    assert one["images"] != coco["images"]
    assert by_id(one["images"]) == by_id(coco["images"])


def test_images_are_read_as_from_their_files(written, tmp_path):
    _, images, folder = written
    for name, path in member_paths(open_shards(str(folder), cache=tmp_path)).items():
        assert np.array_equal(read_image(path), read_image(images / name))
        assert np.array_equal(
            read_image(path, bits16="keep"), read_image(images / name, bits16="keep")
        )
        assert image_size(path) == image_size(images / name)


@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"include": ["*.jpg"]},
        {"exclude": ["deep/*"], "fold": FoldConfig(folds=2, index=1, part="val")},
    ],
)
def test_the_index_is_that_of_the_coco_file(written, tmp_path, monkeypatch, selection):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path))
    _, images, folder = written
    coco = CocoSource(
        format="coco", annotations=folder.parent / "coco.json", images=images, **selection
    )
    shards = ShardsSource(format="shards", folder=str(folder), **selection)
    truth = read_index(coco, need_masks=True)
    for _ in range(2):  # built, then from the cache
        index = read_index(shards, need_masks=True)
        assert index.categories == truth.categories
        assert len(index.records) == len(truth.records) > 1
        for one, two in zip(index.records, truth.records, strict=True):
            assert (one.image_id, one.size) == (two.image_id, two.size)
            assert np.array_equal(read_image(one.path), read_image(two.path))
            rows = [{int(i): row for row, i in enumerate(r.annotation_ids)} for r in (one, two)]
            assert rows[0].keys() == rows[1].keys()
            for key, row in rows[0].items():
                other = rows[1][key]
                assert one.labels[row] == two.labels[other]
                assert np.array_equal(one.boxes[row], two.boxes[other])
                np.testing.assert_equal(one.segmentations[row], two.segmentations[other])


def test_the_writer_refuses_what_would_be_lost(tmp_path):
    coco = make_coco(tmp_path)
    coco["annotations"][2]["image_id"] = 5
    with pytest.raises(AnnotationError, match=r"coco: annotations\[2\] has the image 5"):
        write_shards(coco, tmp_path, tmp_path / "out", source="coco")
    coco = make_coco(tmp_path)
    coco["annotations"][0]["area"] = float("nan")
    with pytest.raises(AnnotationError, match=r"coco: image \d+ has a number that is not finite"):
        write_shards(coco, tmp_path, tmp_path / "out", source="coco")
    coco = make_coco(tmp_path)
    coco["images"][1]["file_name"] = "gone.jpg"
    with pytest.raises(AnnotationError, match=r"gone\.jpg.*mend or remove.*1 in all"):
        write_shards(coco, tmp_path, tmp_path / "out", source="coco")
    coco = make_coco(tmp_path)
    coco["images"][4]["file_name"] = "e.tif#page=0"
    with pytest.raises(AnnotationError, match="is a page of a stack; save it as a file"):
        write_shards(coco, tmp_path, tmp_path / "out", source="coco")
    (tmp_path / "notes.txt").write_text("x")
    coco["images"][4]["file_name"] = "notes.txt"
    with pytest.raises(AnnotationError, match=r"notes\.txt does not end in one of"):
        write_shards(coco, tmp_path, tmp_path / "out", source="coco")
    assert not (tmp_path / "out").exists()


def test_a_set_is_not_written_over(own):
    coco, images, folder = own
    with pytest.raises(FileExistsError, match="there is a data set already"):
        write_shards(coco, images, folder, source="coco")
    (folder / "dataset.json").unlink()  # as after a writer that was killed
    write_shards(coco, images, folder, source="coco", shard_bytes=14_000)
    assert open_shards(str(folder), cache=folder).coco()["images"] == coco["images"]


def test_an_unfinished_set_is_refused(own):
    *_, folder = own
    (folder / "dataset.json").unlink()
    with pytest.raises(ShardError, match=r"dataset\.json: there is no such file; .*writes it last"):
        open_shards(str(folder), cache=folder)


# Tars that others made.

RECORD = json.dumps({"image": {"id": 1}, "annotations": []}, indent=2).encode()


def tar_bytes(*members, **options) -> bytes:
    """A tar of members: (name, content), or a `tarfile.TarInfo`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mtime = len(member[1]), 1.25
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def index_of(data: bytes):
    return build_index(io.BytesIO(data), "s.tar")


@pytest.mark.parametrize("options", [{"format": f} for f in range(3)])
def test_tars_of_every_format_are_read(options):
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    long = "k" * 120
    data = tar_bytes(
        folder,
        ("./1.jpg", b"one"),
        ("./1.json", RECORD),
        ("1.seg.png", b"no image"),
        ("sub/2.txt", b"no image"),
        *([] if options["format"] == tarfile.USTAR_FORMAT else [(f"{long}.json", RECORD)]),
        *([] if options["format"] == tarfile.USTAR_FORMAT else [(f"{long}.PNG", b"three")]),
        **options,
    )
    index = index_of(data)
    names = [sample.member for sample in index.samples]
    assert names == ["1.jpg", f"{long}.PNG"][: len(names)]
    assert len(names) == 1 + (options["format"] != tarfile.USTAR_FORMAT)
    for name, content in zip(names, (b"one", b"three"), strict=False):
        offset, size, _ = index.table.find(name)
        assert data[offset : offset + size] == content
    assert index.table.find("1.seg.png") is None


def special(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def huge(size: int) -> bytes:
    """A header that declares ``size`` bytes, and little after it."""
    info = tarfile.TarInfo("7.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def extended(size: int) -> bytes:
    return special("x", tarfile.XHDTYPE, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(2**17)


PAIR = [("1.jpg", b"one"), ("1.json", RECORD)]
BAD = {
    "climbing": (tar_bytes(("../1.jpg", b"x")), r"s\.tar#'\.\./1\.jpg': its name does not stay"),
    "within": (tar_bytes(("a/../../b.jpg", b"x")), r"does not stay in the folder"),
    "absolute": (tar_bytes(("/etc/1.jpg", b"x")), r"s\.tar#'/etc/1\.jpg': its name does not stay"),
    "backslash": (tar_bytes(("..\\1.jpg", b"x")), r"does not stay in the folder"),
    "newline": (tar_bytes(("a\n1.jpg", b"x")), r"does not stay in the folder"),
    "long": (tar_bytes(("k" * 300 + ".jpg", b"x")), "its name is longer than 255 bytes"),
    "symlink": (
        tar_bytes(special("1.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")),
        r"s\.tar#1\.jpg: is a link; shards hold plain files",
    ),
    "hard link": (
        tar_bytes(*PAIR, special("2.jpg", tarfile.LNKTYPE, linkname="1.jpg")),
        r"s\.tar#2\.jpg: is a link",
    ),
    "device": (tar_bytes(special("1.jpg", tarfile.CHRTYPE)), r"s\.tar#1\.jpg: is no plain file"),
    "pipe": (tar_bytes(special("1.jpg", tarfile.FIFOTYPE)), r"s\.tar#1\.jpg: is no plain file"),
    "huge": (huge(2**60), r"s\.tar#7\.jpg: declares 1152921504606846976 bytes; the limit is"),
    "large": (huge(MAX_MEMBER), r"s\.tar#7\.jpg: the tar is cut short at byte 2560"),
    "negative": (huge(-1), r"declares -1 bytes"),
    "extended": (extended(2**40), r"has 1099511627776 bytes of extended header"),
    "twice": (tar_bytes(*PAIR, ("./1.jpg", b"x")), r"s\.tar#1\.jpg: is there twice"),
    "two images": (tar_bytes(*PAIR, ("1.png", b"x")), r"1\.png: its key has another image, 1\.jpg"),
    "no json": (tar_bytes(("1.jpg", b"x")), r"s\.tar#1\.jpg: there is no 1\.json beside it"),
    "no image": (tar_bytes(("1.json", RECORD)), r"s\.tar#1\.json: there is no image"),
    "json": (tar_bytes(("1.json", b"{")), r"s\.tar#1\.json: is not \{\"image\""),
    "records": (tar_bytes(("1.json", b'{"image": 3}')), r"s\.tar#1\.json: is not .*image"),
    "deep": (tar_bytes(("1.json", b"[" * 10**5)), r"s\.tar#1\.json: is not"),
    "no tar": (b"\xff\xd8" + bytes(range(250)) * 9, r"s\.tar: the first header is damaged"),
    "empty": (b"", r"s\.tar: the tar is cut short at byte 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tars_are_refused_by_name(kind):
    data, message = BAD[kind]
    with pytest.raises(ShardError, match=message):
        index_of(data)


def error_or_result(call):
    """(message of the ShardError, None), or ("", what the call returns)."""
    try:
        return "", call()
    except ShardError as error:
        return str(error), None


def test_a_tar_cut_short_anywhere_is_refused():
    data = tar_bytes(*PAIR, ("2.jpg", b"x" * 700), ("2.json", RECORD))
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    index_of(data[: end + 512])
    for length in range(0, end + 511, 37):
        with pytest.raises(ShardError, match="cut short"):
            index_of(data[:length])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_tars_raise_only_shard_errors(data):
    tar = bytearray(tar_bytes(*PAIR, ("k" * 120 + ".jpg", b"x"), ("k" * 120 + ".json", RECORD)))
    for _ in range(data.draw(st.integers(1, 6))):
        tar[data.draw(st.integers(0, 5000))] = data.draw(st.integers(0, 255))
    message, index = error_or_result(lambda: index_of(bytes(tar)))
    if index is None:
        assert message.startswith("s.tar")
    else:
        assert (index.table.offsets + index.table.sizes <= len(tar)).all()


# What becomes of the files afterwards.


def contents_of(path: Path) -> list:
    """All that an index says."""
    sha256, table = load_table(path)
    columns = (table.names, table.offsets, table.sizes, table.crc32)
    return [sha256, table.shard_size, [c.tolist() for c in columns], load_samples(path)]


def test_indexes_are_built_where_they_are_missing_or_damaged(own, caplog):
    coco, _, folder = own
    shards = sorted(folder.glob("*.tar"))
    kept = [contents_of(index_path(shard)) for shard in shards]
    index_path(shards[0]).unlink()
    os.truncate(index_path(shards[1]), 100)
    done = []
    opened = open_shards(str(folder), cache=folder, on_progress=lambda *count: done.append(count))
    assert [contents_of(index_path(shard)) for shard in shards] == kept
    assert opened.coco()["images"] == coco["images"]
    assert done == [(i, 4) for i in (1, 2, 3, 4)]
    assert "shard-000001.tar.index" in caplog.text


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_indexes_raise_only_shard_errors(written, tmp_path, data):
    *_, folder = written
    content = bytearray((folder / "shard-000000.tar.index").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.index"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    message, loaded = error_or_result(lambda: (load_samples(path), *load_table(path)))
    if loaded is None:
        assert str(path) in message
    else:
        assert (loaded[2].offsets + loaded[2].sizes <= loaded[2].shard_size).all()


def test_a_changed_shard_is_noticed(own):
    *_, folder = own
    shard = folder / "shard-000000.tar"
    paths = member_paths(open_shards(str(folder), cache=folder))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1  # in the first image
    shard.write_bytes(data)
    with pytest.raises(ImageError, match=r"shard-000000\.tar#000000000\.jpg.*other content"):
        read_image(paths["a.jpg"])
    assert read_image(paths["deep/er/b.v2.jpg"]).ndim == 3
    shard.write_bytes(data[:2000])
    with pytest.raises(ImageError, match=r"shard-000000\.tar: is cut short"):
        read_image(paths["a.jpg"])
    with pytest.raises(ShardError, match=r"shard-000000\.tar#\S+: the tar is cut short"):
        open_shards(str(folder), cache=folder)
    shard.write_bytes((folder / "shard-000002.tar").read_bytes())  # of another size
    with pytest.raises(ShardError, match=r"shard-000000\.tar: is not the file that dataset\.json"):
        open_shards(str(folder), cache=folder)
    shard.unlink()
    with pytest.raises(ShardError, match=r"shard-000000\.tar: there is no such file"):
        open_shards(str(folder), cache=folder)


def test_names_of_no_member_are_named(written, tmp_path):
    *_, folder = written
    shard = open_shards(str(folder), cache=tmp_path).folder / "shard-000000.tar"
    assert split_member(f"{shard}#a/b#c.jpg") == (shard, "a/b#c.jpg")
    assert split_member("a#b.jpg") == (Path("a#b.jpg"), None)
    with pytest.raises(ImageError, match=r"shard-000000\.tar#9\.jpg: there is no such image"):
        read_image(f"{shard}#9.jpg")
    with pytest.raises(ImageError, match=r"shard-000009\.tar: has no index"):
        read_image(f"{shard.parent}/shard-000009.tar#9.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"categories": [], "shards": [{"name": "../s.tar", "sha256": ""}]},
            r"'\.\./s\.tar' is no",
        ),
        ({"categories": [], "shards": [{"name": "/s.tar", "sha256": ""}]}, "is no plain file name"),
        ({"categories": [], "shards": [{"name": "s.tar", "sha256": ""}] * 2}, "is listed twice"),
        ({"categories": []}, r"dataset\.json: not usable: .*shards"),
        ([], r"dataset\.json: not usable"),
    ],
)
def test_a_bad_dataset_file_is_refused(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ShardError, match=message):
        open_shards(str(tmp_path), cache=tmp_path)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(own, tmp_path):
    *_, folder = own
    shard = folder / "shard-000000.tar"
    shard.rename(tmp_path / "away.tar")
    shard.symlink_to(tmp_path / "away.tar")
    with pytest.raises(ShardError, match=r"shard-000000\.tar: is a link to .*away\.tar"):
        open_shards(str(folder), cache=tmp_path)


# Other places than a folder that can be written to.


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


# The order of training.


def windows_of(order: ByShard, drawn) -> list[set[int]]:
    shards = order.shards[drawn]
    return [set(shards[start : start + 20].tolist()) for start in range(0, len(shards), 20)]


def test_an_order_by_shards_stays_in_its_windows():
    shards = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 10))
    order = ByShard(Shuffle(np.arange(100)), shards, window=2)
    drawn = order.draw(7, 0)
    assert len(order) == 100
    assert sorted(drawn.tolist()) == list(range(100))
    windows = windows_of(order, drawn)
    assert [len(window) for window in windows] == [2] * 5
    assert set().union(*windows) == set(range(10))
    # Within a window the shards are mixed.
    assert 3 < np.count_nonzero(np.diff(shards[drawn[:20]])) < 19
    assert np.array_equal(order.draw(7, 0), drawn)
    assert windows_of(order, order.draw(7, 1)) != windows
    assert windows_of(order, order.draw(8, 0)) != windows


def test_an_order_by_shards_keeps_what_the_order_below_draws():
    class Repeating:
        def __len__(self):
            return 8

        def draw(self, seed, epoch):
            return np.array([3, 1, 3, 0, 5, 1, 4, 3])

    shards = np.array([0, 0, 1, 1, 2, 2])
    everything = ByShard(Repeating(), shards, window=3)
    assert everything.draw(0, 0).tolist() == [3, 1, 3, 0, 5, 1, 4, 3]
    alone = ByShard(Repeating(), shards, window=1).draw(0, 0).tolist()
    parts = {0: [1, 0, 1], 1: [3, 3, 3], 2: [5, 4]}
    order = list(dict.fromkeys(shards[alone].tolist()))
    assert alone == [index for shard in order for index in parts[shard]]
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        ByShard(Repeating(), shards, window=0)


def test_shard_numbers(written, tmp_path):
    *_, folder = written
    paths = member_paths(open_shards(str(folder), cache=tmp_path))
    numbers = shard_numbers(paths.values())
    assert numbers.tolist() == sorted(numbers.tolist())
    assert set(numbers.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"a\.jpg is no member of a shard"):
        shard_numbers([Path("a.jpg")])
