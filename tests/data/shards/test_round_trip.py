"""Data sets in tar shards: nothing is lost on the way there and back."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from instseg.config.build_data import read_index
from instseg.config.schema_source import CocoSource, FoldConfig, ShardsSource
from instseg.data.coco import AnnotationError
from instseg.data.image_io import image_size, read_image
from instseg.data.shards.errors import ShardError
from instseg.data.shards.open import open_shards
from instseg.data.shards.writer import write_shards
from tests.data.shard_set import NAMES, make_coco

from .helpers import by_id, member_paths


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
