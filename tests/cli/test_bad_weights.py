"""Weights that do not fit, files that are cut short or made by hand, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.cli import convert_weights, evaluate, predict, train
from instseg.data.synthetic import CLASSES
from instseg.engine.checkpoint import read_checkpoint
from instseg.engine.weights import load_weights, save_weights

from .tiny import STEPS, refused, rows, write_config


@pytest.fixture
def image(shapes: Path) -> str:
    return str(shapes / "val" / "images" / "000000.png")


def edited(source: Path, path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """A copy of a weights file after ``edit(tensors, description)``."""
    tensors, metadata = load_weights(source)
    about = json.loads(metadata["instseg"])
    edit(tensors, about)
    save_weights(path, tensors, {"instseg": json.dumps(about)})
    return str(path)


# --- weights that do not fit --------------------------------------------------------------------


def test_weights_of_other_classes_than_the_data(
    shapes: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By number and by name; `train.init_from` has its test in `test_train`."""
    copy = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    path = copy / "val" / "annotations.json"
    coco = json.loads(path.read_text())
    argv = ["--config", str(write_config(tmp_path, copy))]
    argv += ["--weights", str(trained / "final.safetensors")]
    words = f"the model's classes {CLASSES[0]} are not in the validation data, whose classes are"
    path.write_text(json.dumps(coco | {"categories": coco["categories"][1:]}))
    refused(evaluate.main, argv, capsys, words, CLASSES[1])
    coco["categories"][0]["name"] = "blob"
    path.write_text(json.dumps(coco))
    refused(evaluate.main, argv, capsys, words, "blob")


def test_weights_of_another_model(
    config: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "final.safetensors")
    argv = ["--config", str(config), "--weights", weights]
    message = refused(
        evaluate.main,
        [*argv, "model.neck.channels=24"],
        capsys,
        f"{weights} does not fit the model: ",
        "neck.lateral.0.0.weight is [16, 32, 1, 1] in the file and [24, 32, 1, 1] in the model",
    )
    assert "classes" not in message
    refused(
        train.main,
        ["--config", str(config), f"train.init_from.weights={weights}", "model.rpn.depth=2"],
        capsys,
        "rpn.head.conv.1.0.weight is missing in the file",
    )


def test_weights_whose_classes_are_not_those_they_list(
    trained: Path, tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop(tensors: dict[str, Any], about: dict[str, Any]) -> None:
        about["categories"].pop()

    weights = edited(trained / "final.safetensors", tmp_path / "w.safetensors", drop)
    words = f"{weights} does not fit the model: it is for another number of classes"
    refused(predict.main, ["--weights", weights, image], capsys, words)


def test_a_checkpoint_is_not_weights(
    trained: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(trained / "last.safetensors")
    refused(predict.main, ["--weights", weights, image], capsys, weights, "final.safetensors")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "carries no configuration and class names"),
        ({"instseg": "{"}, "metadata 'instseg' is not what instseg writes"),
        ({"instseg": "[" * 100_000}, "metadata 'instseg' is not what instseg writes"),
        ({"instseg": '{"inference": "", "categories": [{"id": Infinity, "name": ""}]}'}, "is not"),
        ({"instseg": '{"inference": "", "categories": {"id": 1}}'}, "is not what instseg writes"),
        ({"instseg": '{"inference": "a: 1", "categories": []}'}, "unknown key 'a'"),
        ({"instseg": '{"inference": "model: ${HOME}", "categories": []}'}, "'HOME' is not allowed"),
        ({"instseg": '{"inference": "base: /etc/passwd", "categories": []}'}, "'base' is not all"),
    ],
)
def test_metadata_made_by_hand(
    tmp_path: Path,
    image: str,
    metadata: dict[str, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "w.safetensors"
    save_weights(weights, {"x": torch.zeros(1)}, metadata)
    refused(predict.main, ["--weights", str(weights), image], capsys, str(weights), words)


# --- files that would run code ------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "save", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save]
)
def test_no_file_runs_code(
    config: Path,
    trained: Path,
    tmp_path: Path,
    image: str,
    save: Callable[[Any, Path], None],
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker, bomb = tmp_path / "marker", tmp_path / f"bomb{suffix}"
    pickle.loads(pickle.dumps(Bomb(marker)))
    marker.rmdir()  # it works, so its absence below says something
    save({"weight": torch.zeros(1), "more": Bomb(marker)}, bomb)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(bomb, run / "last.safetensors")
    training = ["--config", str(config), "--output", str(tmp_path / "new")]
    for command, argv in [
        (predict.main, ["--weights", str(bomb), image]),
        (evaluate.main, ["--config", str(config), "--weights", str(bomb)]),
        (train.main, [*training, f"train.init_from.weights={bomb}"]),
        (train.main, [*training, f"model.backbone.weights={bomb}"]),
        (
            convert_weights.main,
            ["maskrcnn_resnet50_fpn", str(bomb), "--output", str(tmp_path / "o")],
        ),
    ]:
        refused(command, argv, capsys, str(bomb))
    argv = ["--config", str(config), "--output", str(run), "--resume"]
    refused(train.main, argv, capsys, f"{run / 'last.safetensors'}: ")
    assert not marker.exists()


# --- checkpoints cut short ----------------------------------------------------------------------


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.fixture
def interrupted(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Path]:
    """Arguments and folder of a run that ended in the middle because the disk was full."""
    run = tmp_path / "run"
    argv = ["--config", str(config), "--output", str(run)]
    with monkeypatch.context() as patch:
        fill_disk(patch, run / ".last.safetensors.tmp", after=6)
        assert train.main(argv) == 2
    return [*argv, "--resume"], run


def fill_disk(patch: pytest.MonkeyPatch, path: Path, after: int) -> None:
    """The disk is full from the time that ``path`` is written for the ``after`` + 1-st time."""
    fsync, saves = os.fsync, []

    def full(descriptor: int) -> None:
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            saves.append(path)
        if len(saves) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    patch.setattr(os, "fsync", full)


def test_a_cut_checkpoint_gives_way_to_the_one_before(
    interrupted: tuple[list[str], Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, run = interrupted
    cut(run / "last.safetensors")
    capsys.readouterr()
    assert train.main(argv) == 0
    log = capsys.readouterr().err
    assert f"{run / 'last.safetensors'}: not a complete safetensors file" in log
    assert f"falling back to {run / 'previous.safetensors'}" in log
    assert rows(run, "train") == rows(trained, "train")


def test_two_cut_checkpoints_are_an_error(
    interrupted: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv, run = interrupted
    for name in ("last", "previous"):
        cut(run / f"{name}.safetensors")
    names = [str(run / f"{name}.safetensors") for name in ("last", "previous")]
    refused(train.main, argv, capsys, "no usable checkpoint: ", *names)


@pytest.mark.parametrize("share", [0, 0.001, 0.999])
def test_weights_cut_short(
    trained: Path, tmp_path: Path, image: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(shutil.copy(trained / "final.safetensors", tmp_path))
    cut(weights, share)
    words = f"{weights}: not a complete safetensors file"
    refused(predict.main, ["--weights", str(weights), image], capsys, words)


# --- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "after"), [("last", 1), ("last", 7), ("best", 0), ("final", 0)])
def test_out_of_disk(
    config: Path,
    trained: Path,
    tmp_path: Path,
    name: str,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last good checkpoint survives, and the run goes on from it to the same end."""
    run = tmp_path / "run"
    argv = ["--config", str(config), "--output", str(run)]
    with monkeypatch.context() as patch:
        fill_disk(patch, run / f".{name}.safetensors.tmp", after)
        words = [f"{run / name}.safetensors: cannot write ", "No space left on device", "make room"]
        refused(train.main, argv, capsys, *words)
    _, header = read_checkpoint(run / "last.safetensors")
    assert 0 < header.step <= STEPS
    assert not list(run.glob(".*"))
    assert train.main([*argv, "--resume"]) == 0
    own, expected = (load_weights(r / "final.safetensors")[0] for r in (run, trained))
    assert all(torch.equal(own[key], expected[key]) for key in expected)
    for kind in ("train", "eval"):
        assert rows(run, kind) == rows(trained, kind)
