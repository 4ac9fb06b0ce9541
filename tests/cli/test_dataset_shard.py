"""The command that writes shards, and training data read from what it wrote."""

import json

import pytest

from instseg.cli.dataset import main
from instseg.data.shards.open import open_shards
from tests.data.shard_set import make_coco


@pytest.fixture
def coco(tmp_path):
    coco = make_coco(tmp_path / "images")
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return coco


def shard(folder, *options) -> int:
    argv = ["shard", str(folder / "coco.json"), "--images", str(folder / "images")]
    return main([*argv, "--output", str(folder / "out"), *options])


def test_shard_writes_a_data_set(coco, tmp_path, capsys):
    assert shard(tmp_path, "--shard-size", str(14_000 / 2**20)) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out: 7 images, 12 objects in 4 shards\n"
    assert open_shards(str(tmp_path / "out"), cache=tmp_path).coco()["images"] == coco["images"]
    assert shard(tmp_path) == 2
    assert "error: " in (error := capsys.readouterr().err)
    assert "there is a data set already" in error


def test_shard_shuffles(coco, tmp_path):
    assert shard(tmp_path, "--shuffle", "1") == 0
    images = open_shards(str(tmp_path / "out"), cache=tmp_path).coco()["images"]
    assert images != coco["images"]
    assert sorted(i["id"] for i in images) == sorted(i["id"] for i in coco["images"])


def test_shard_refuses_what_it_cannot_write(coco, tmp_path, capsys):
    assert shard(tmp_path, "--shard-size", "0") == 2
    assert "--shard-size must be over 0, got 0" in capsys.readouterr().err
    (tmp_path / "images" / "a.jpg").unlink()
    assert shard(tmp_path) == 2
    assert "a.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
