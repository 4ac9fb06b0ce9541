"""What becomes of a set's files after they were written."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instseg.data.image_io import ImageError, read_image
from instseg.data.shards.errors import ShardError
from instseg.data.shards.index import index_path, load_samples, load_table
from instseg.data.shards.members import split_member
from instseg.data.shards.open import open_shards

from .helpers import error_or_result, member_paths


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
