"""Every kind of defect is found by the check, on its record, and survived by training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.cli import dataset as dataset_command
from instseg.cli import train
from instseg.config.build_data import read_index
from instseg.config.schema_source import CocoSource
from instseg.data.dataset import DetectionDataset
from instseg.data.image_io import ImageError
from instseg.data.index import CocoIndex
from instseg.data.loader import DetectionLoader
from instseg.data.sampling import TrainBatchSampler
from instseg.data.transforms import Compose
from instseg.ops import instance_rles, rle
from tests.cli.tiny import CONFIG

from .defective_set import KINDS, OBJECTS, SIDE, Kind, Place, save, write_set

Found = tuple[str, str, int | None, int | None]
"""(code, severity, image id, annotation id)."""


def names(kind: Kind) -> str:
    return kind.name.replace(" ", "-")


def planted(kind: Kind, folder: Path) -> tuple[Path, Place]:
    """Four images, and the defect in the second."""
    coco, places = write_set(folder, 4)
    kind.plant(places[1])
    return save(coco, folder), places[1]


def check(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Found]]:
    """Run `dataset check`: its exit status, and what it finds but for notes."""
    out = file.with_name("defects.json")
    argv = ["check", str(file), "--images", str(file.parent / "images"), "--json", str(out)]
    status = dataset_command.main(argv)
    capsys.readouterr()
    return status, [
        (d["code"], d["severity"], d["image_id"], d["annotation_id"])
        for d in json.loads(out.read_text())
        if d["severity"] != "note"
    ]


def expected(kind: Kind, place: Place) -> set[Found]:
    """What the check finds of a planted defect."""
    severity = "error" if kind.is_error else "warning"
    image, item = place.image["id"], place.first.get("id")
    ids = {"image": (image, None), "object": (place.first["image_id"], item), "file": (None, None)}
    found: set[Found] = set() if kind.code is None else {(kind.code, severity, *ids[kind.where])}
    for code in kind.others:
        found.add((code, "error", *ids["object" if code == "unknown-category" else "file"]))
    return found


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_the_check_finds_it_on_its_record(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, place = planted(kind, tmp_path)
    status, found = check(file, capsys)
    wanted = expected(kind, place)
    assert set(found) == wanted
    assert status == any(severity == "error" for _, severity, *_ in wanted)


def index_of(file: Path) -> CocoIndex:
    source = CocoSource(format="coco", annotations=file, images=file.parent / "images")
    return read_index(source, need_masks=True)


def epoch(index: CocoIndex, on_error: Any, workers: int = 0) -> dict[int, int]:
    """One epoch of the training part as a model sees it: objects of each image, by image id."""
    records = index.records
    data = DetectionDataset(records, Compose([]), seed=0, with_masks=True, on_error=on_error)
    sampler = TrainBatchSampler([r.size for r in records], 2, seed=0)
    seen = {}
    for batch in DetectionLoader(data, sampler, num_workers=workers).epoch(0):
        for image, target, image_id in zip(
            batch.images, batch.targets, batch.image_ids, strict=True
        ):
            assert image.shape == (3, *target.image_size)
            assert torch.isfinite(target.boxes).all()  # type: ignore[union-attr]
            pixels = [rle.decode(code) for code in instance_rles(target)]  # type: ignore[arg-type]
            assert all(p.shape == target.image_size for p in pixels)
            seen[image_id] = len(pixels)
    return seen


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_training_refuses_skips_or_uses_it(
    kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, place = planted(kind, tmp_path)
    image_id = place.image["id"]
    with caplog.at_level(logging.WARNING):
        index = index_of(file)
    whole = {1: OBJECTS, 2: OBJECTS, 3: OBJECTS, 4: OBJECTS}
    if kind.training == "unreadable":
        with pytest.raises(ImageError, match=place.file.name):
            epoch(index, "raise")
        caplog.clear()
        del whole[image_id]
        assert epoch(index, "skip") == whole
        assert place.file.name in caplog.text
        return
    if kind.training == "image left out":
        del whole[image_id]
    elif kind.training == "object left out":
        whole[image_id] -= 1
    assert epoch(index, "raise") == epoch(index, "skip") == whole
    if kind.training != "trained":
        assert kind.code is not None
        assert (kind.others[-1] if kind.others else kind.code) in caplog.text


def planted_set(folder: Path, kinds: Sequence[Kind]) -> tuple[Path, list[Place]]:
    """A set in which one record of twenty is planted with a defect, all kinds among them."""
    images = -(-20 * len(kinds) // (1 + OBJECTS))
    coco, places = write_set(folder, images)
    for kind, place in zip(kinds, places, strict=False):
        kind.plant(place)
    return save(coco, folder), places


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Place]]:
    return planted_set(tmp_path_factory.mktemp("whole"), KINDS)


def test_the_check_finds_all_kinds_at_once(
    whole_set: tuple[Path, list[Place]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, places = whole_set
    status, found = check(file, capsys)
    wanted = [expected(kind, place) for kind, place in zip(KINDS, places, strict=False)]
    assert set(found) == set().union(*wanted)
    assert status == 1
    assert len(KINDS) / (len(places) * (1 + OBJECTS)) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_of_all_kinds_at_once(whole_set: tuple[Path, list[Place]], workers: int) -> None:
    file, places = whole_set
    index = index_of(file)
    gone = {
        place.image["id"]
        for kind, place in zip(KINDS, places, strict=False)
        if kind.training in ("unreadable", "image left out")
    }
    seen = epoch(index, "skip", workers)
    assert seen.keys() == {place.image["id"] for place in places} - gone
    with pytest.raises(ImageError):
        epoch(index, "raise", workers)


def config(folder: Path, file: Path, on_error: str) -> Path:
    """The tiny training of one epoch on a data set."""
    text = CONFIG
    for old, new in (
        ("SHAPES/train/annotations.json", str(file)),
        ("SHAPES/train/images", str(file.parent / "images")),
        ("SHAPES/val/annotations.json", str(file)),
        ("SHAPES/val/images", str(file.parent / "images")),
        ("  workers: 0\n", f"  workers: 1\n  on_error: {on_error}\n"),
        ("  epochs: 6\n", "  epochs: 1\n"),
        ("eval_every: 3", "eval_every: 1"),
        ("[56, 64]", f"[{SIDE}]"),
        ("output: runs/tiny", f"output: {folder / 'run'}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_model_is_trained_on_all_kinds_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command skips what it is told to skip, and names what it refuses."""
    kinds = [kind for kind in KINDS if kind.code != "duplicate-category-name"]
    file, places = planted_set(tmp_path / "set", kinds)
    refusing, skipping = tmp_path / "raise", tmp_path / "skip"
    refusing.mkdir()
    skipping.mkdir()
    assert train.main(["--config", str(config(refusing, file, "raise"))]) == 2
    error = capsys.readouterr().err.replace("\n", "")
    bad = [p.file for kind, p in zip(kinds, places, strict=False) if kind.training == "unreadable"]
    assert any(str(path) in error for path in bad), error
    assert train.main(["--config", str(config(skipping, file, "skip"))]) == 0
    assert (skipping / "run" / "final.safetensors").is_file()


def test_scoring_refuses_two_categories_of_one_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are learnt as two classes, but a table of scores by name could not tell them apart."""
    (kind,) = (kind for kind in KINDS if kind.code == "duplicate-category-name")
    file, _ = planted(kind, tmp_path / "set")
    assert train.main(["--config", str(config(tmp_path, file, "skip"))]) == 2
    assert "the name 'fig' is used twice" in capsys.readouterr().err


def test_there_are_enough_kinds() -> None:
    defects = [kind for kind in KINDS if kind.code is not None]
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert len(defects) >= 20
    assert len({kind.code for kind in defects}) >= 20
