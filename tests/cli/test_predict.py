"""`predict.py` needs weights and images alone, and sees what `eval_coco.py` sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from instseg.cli import evaluate
from instseg.cli.predict import main
from instseg.data.synthetic import CLASSES


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def weights(trained: Path, tmp_path: Path) -> Path:
    """The weights alone: there is no configuration beside them."""
    return Path(shutil.copy(trained / "final.safetensors", tmp_path / "weights.safetensors"))


def test_pictures_and_results(weights: Path, shapes: Path, trained: Path, tmp_path: Path) -> None:
    images, output = shapes / "val" / "images", tmp_path / "out"
    argv = ["--weights", str(weights), "--output", str(output), "--score", "0.1"]
    assert main([*argv, str(images)]) == 0

    listing = read(output / "images.json")
    files = sorted(images.iterdir())
    assert [image["file_name"] for image in listing["images"]] == list(map(str, files))
    assert [c["name"] for c in listing["categories"]] == list(CLASSES)
    for file in files:
        original, drawn = cv2.imread(str(file)), cv2.imread(str(output / file.name))
        assert drawn.shape == original.shape
    assert any(
        (cv2.imread(str(f)) != cv2.imread(str(output / f.name))).any() for f in files
    )  # something was found and drawn

    # The two files load in pycocotools as they are.
    (tmp_path / "gt.json").write_text(json.dumps(listing | {"annotations": []}))
    loaded = COCO(str(tmp_path / "gt.json")).loadRes(str(output / "results.json"))
    results = read(output / "results.json")
    assert len(loaded.anns) == len(results) > 0

    # The data set numbers its images in the same order.
    argv = ["--config", str(trained / "config.yaml"), "--weights", str(weights)]
    argv += ["data.val_batch_size=1", "--save-results", str(tmp_path / "eval.json")]
    assert evaluate.main(argv) == 0
    assert results == read(tmp_path / "eval.json")


def test_files_and_folders(
    weights: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shapes / "val" / "images" / "000000.png"
    for name in ("a/same.png", "b/same.PNG", "b/deep/same_1.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    gray = cv2.cvtColor(cv2.imread(str(source)), cv2.COLOR_BGR2GRAY)
    assert cv2.imwrite(str(tmp_path / "gray.jpg"), gray[:40])
    given = [str(tmp_path / name) for name in ("a/same.png", "b", "gray.jpg", "a/same.png")]
    output = tmp_path / "out"
    assert main([*given, "--weights", str(weights), "--output", str(output)]) == 0
    pictures = {p.name for p in output.glob("*.png")}
    assert pictures == {"same.png", "same_1.png", "same_2.png", "gray.png"}
    images = read(output / "images.json")["images"]
    assert len(images) == 4
    assert images[-1]["height"] == 40
    assert "in 4 images" in capsys.readouterr().out


def test_nothing_is_drawn_below_the_score(weights: Path, shapes: Path, tmp_path: Path) -> None:
    image = shapes / "val" / "images" / "000000.png"
    argv = ["--weights", str(weights), "--output", str(tmp_path / "out"), "--score", "1.01"]
    assert main([*argv, str(image)]) == 0
    assert np.array_equal(cv2.imread(str(tmp_path / "out/000000.png")), cv2.imread(str(image)))
    assert read(tmp_path / "out" / "results.json") != []


# --- bad input ----------------------------------------------------------------------------------


def test_images_are_never_overwritten(
    weights: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Path(shutil.copy(shapes / "val" / "images" / "000000.png", tmp_path / "photo.png"))
    before = image.read_bytes()
    assert main([str(image), "--weights", str(weights), "--output", str(tmp_path)]) == 2
    assert (
        f"error: {image} is one of the images: choose another --output" in capsys.readouterr().err
    )
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER/none.png"], "FOLDER/none.png: no such file or folder"),
        (["FOLDER/empty"], "no images in FOLDER/empty"),
        (["FOLDER/broken.png"], "FOLDER/broken.png: "),
        (["FOLDER/good.png", "--weights", "FOLDER/no.safetensors"], "no.safetensors: no such file"),
        (
            ["FOLDER/good.png", "--weights", "FOLDER/broken.png"],
            "broken.png: torch.load(weights_on",
        ),
        (["FOLDER/good.png", "--device", "abacus"], "--device: "),
        (["FOLDER/good.png", "--device", "cuda:99"], "--device is 'cuda:99': torch sees"),
        (["FOLDER/good.png", "--output", "FOLDER/good.png"], "FOLDER/good.png"),
    ],
)
def test_errors_are_one_line(
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(shapes / "val" / "images" / "000000.png", tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    given = [text.replace("FOLDER", str(tmp_path)) for text in arguments]
    assert main(["--weights", str(weights), "--output", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message.replace("FOLDER", str(tmp_path)) in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error
