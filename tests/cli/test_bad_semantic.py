"""What the commands refuse of semantic models, their masks and options: one line that tells why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.cli import eval_maps, evaluate, train

from .cells import CONFIG, OBJECTS, untrained
from .tiny import refused


def test_coco_scores_are_for_objects(
    cells_config: Path, unet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(cells_config), "--weights", str(unet_run / "final.safetensors")]
    refused(evaluate.main, argv, capsys, str(cells_config), "tools/eval_maps.py", "model.instances")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tile", "0"], ["--tile 0: tile and batch_size must be at least 1"]),
        (["--blend"], ["--blend", "--tile"]),
        ([OBJECTS, "--tile", "64"], ["--tile is for models that predict class maps", "objects"]),
        ([OBJECTS, "--metric", "em"], ["--metric is for models that predict class maps"]),
        ([OBJECTS, "--adaptive", "otsu"], ["--adaptive is for models that predict class maps"]),
        (["data.val.category=nucleus"], ["the model's classes are cell", "nucleus"]),
        (["data.val.include=['x*']"], ["no image is left by include and exclude"]),
        (["model.network.width=8"], ["does not fit the model", "network."]),
        (["data.val={format: image_pairs, folder: x}"], ["image_pairs", "pix2pix"]),
    ],
)
def test_options_that_do_not_fit_the_model(
    cells_config: Path,
    unet_run: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--config", str(cells_config), "--weights", str(unet_run / "final.safetensors"), *more]
    refused(eval_maps.main, argv, capsys, *words)


def test_a_tile_below_the_overlap(
    cells_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded = "model.network={name: unet, width: 2, depth: 4}"
    argv = untrained(tmp_path / "w.safetensors", cells_config, ["cell"], padded)
    refused(eval_maps.main, [*argv, "--tile", "16"], capsys, "--tile 16: ", "too small")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--adaptive", "otsu"], ["--adaptive", "3 that exclude each other"]),
        (["--metric", "em"], ["em", "one class", "has 2"]),
    ],
)
def test_metrics_of_one_foreground(
    cells_config: Path,
    cells: Path,
    tmp_path: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    val = f"data.val={{format: semantic_png, images: {cells}/images, masks: {cells}/ids, "
    val += "classes: {left: 1, right: 2}, ignore: 3}"
    argv = untrained(tmp_path / "w.safetensors", cells_config, ["left", "right"], val)
    refused(eval_maps.main, [*argv, *more], capsys, *words)


@pytest.fixture
def copy(cells: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be spoilt."""
    return Path(shutil.copytree(cells, tmp_path / "cells"))


def black(root: Path) -> None:
    for path in (root / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 52), np.uint8))


def small(root: Path) -> None:
    cv2.imwrite(str(root / "masks" / "train1.png"), np.zeros((48, 50), np.uint8))


def many_values(root: Path) -> None:
    mask = np.arange(48 * 52).reshape(48, 52) % 7
    cv2.imwrite(str(root / "masks" / "train1.png"), mask.astype(np.uint8))


def colours(root: Path) -> None:
    image = np.zeros((48, 52, 3), np.uint8)
    image[..., 0] = 200
    cv2.imwrite(str(root / "images" / "train1.png"), image)


def missing(root: Path) -> None:
    (root / "masks" / "train1.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "override", "words"),
    [
        (black, "", ["cells/masks: all masks are background", "0 = background"]),
        (small, "", ["cells/masks/train1.png", "48x50", "cells/images/train1.png", "48x52"]),
        (many_values, "", ["cells/masks/train1.png", "values without meaning: 2", "`classes`"]),
        (missing, "", ["cells/images", "train1.png"]),
        (
            colours,
            "",
            ["images/train1.png: is a colour image", "image_channels is 1; set it to 3"],
        ),
        (
            lambda root: None,
            "model.image_channels=5",
            ["cells/images/train", "model.image_channels is 5; set it to 1"],
        ),
        (
            lambda root: None,
            "data.train.classes={cell: 1}",
            ["cells/masks: all masks are background", "1 = cell, 255 = ignored"],
        ),
    ],
    ids=["background", "size", "values", "no mask", "colours", "channels", "classes"],
)
def test_masks_and_images_that_do_not_fit(
    copy: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    override: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy)
    path = tmp_path / "cells.yaml"
    path.write_text(CONFIG.replace("CELLS", str(copy)))
    argv = ["--config", str(path), "--output", str(tmp_path / "run"), "train.epochs=1"]
    refused(train.main, [*argv, override] if override else argv, capsys, *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.val.category=nucleus", ["the model's classes are cell", "nucleus"]),
        ("data.train.exclude=['*']", ["no image is left by include and exclude"]),
        ("data.train={format: image_pairs, folder: x}", ["image_pairs (x)", "model pix2pix"]),
        ("model={name: pix2pix}", ["pix2pix needs format image_pairs, not semantic_png"]),
        ("model.loss={crossentropy: 1}", ["model.loss", "did you mean cross_entropy?"]),
        ("train.best_metric=segm/AP", ["'segm/AP' is none of the scores", "semantic/jaccard"]),
        ("model.background=false", ["model.background", "classes: multilabel"]),
    ],
)
def test_settings_that_do_not_fit_the_data(
    cells_config: Path,
    tmp_path: Path,
    override: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--config", str(cells_config), "--output", str(tmp_path / "run"), override]
    refused(train.main, argv, capsys, *words)
