"""What the commands refuse of semantic models, their masks and options: one line that tells why."""

from __future__ import annotations

import json
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


def test_pictures_below_the_window_of_their_score(
    cells_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = {"large": 24, "small": 10}
    for name, side in pairs.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((side, 2 * side, 3), np.uint8))
    source = f"{{format: image_pairs, folder: {tmp_path}}}"
    argv = [
        "--config", str(cells_config), "--output", str(tmp_path / "run"),
        "model={name: pix2pix, width: 2, depth: 3}", f"data.train={source}", f"data.val={source}",
        "data.targets={}",
    ]  # fmt: skip
    words = [f"{tmp_path}/small.png: pictures of 10x10 pixels", "11x11", "leave them out"]
    refused(train.main, argv, capsys, *words)
    assert not (tmp_path / "run").exists()


def test_the_bowls_score_of_objects_that_overlap(
    cells_config: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares = [[4, 4, 20, 20], [30, 4, 40, 20], [18, 4, 28, 20]]  # the third overlaps the first
    annotations = [
        {
            "id": 7 + i, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "iscrowd": 0, "area": 1,
        }
        for i, (x1, y1, x2, y2) in enumerate(squares)
    ]  # fmt: skip
    image = {"id": 1, "file_name": "val0.png", "height": 48, "width": 52}
    file = tmp_path / "overlap.json"

    def argv(objects: list[dict[str, object]]) -> list[str]:
        coco = {"images": [image], "annotations": objects}
        file.write_text(json.dumps(coco | {"categories": [{"id": 1, "name": "cell"}]}))
        val = f"data.val={{format: coco, annotations: {file}, images: {cells}/images}}"
        return untrained(tmp_path / "w.safetensors", cells_config, ["cell"], OBJECTS, val)

    assert eval_maps.main(argv(annotations[:2])) == 0
    words = [f"{cells}/images/val0.png: annotation 9 overlaps", "Bowl", "tools/eval_coco.py"]
    refused(eval_maps.main, argv(annotations), capsys, *words)


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


def test_masks_are_no_pairs_of_pictures(
    cells_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(cells_config), "--output", str(tmp_path / "run"), "data.targets={}"]
    words = ["pix2pix needs format image_pairs, not semantic_png"]
    refused(train.main, [*argv, "model={name: pix2pix}"], capsys, *words)
