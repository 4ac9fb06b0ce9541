"""Semantic models through the commands: training, resuming, scores of maps, objects, pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from instseg.cli import eval_maps, evaluate, train
from instseg.config.build_model import build_model
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config
from instseg.engine.weights import METADATA_KEY, load_weights, save_weights

from .tiny import refused, rows

CONFIG = """\
model:
  name: semantic
  network: {name: unet, width: 4, depth: 2, padding: valid, dropout: 0.2}
  image_channels: 1
  loss: {cross_entropy: 1, dice: 1}
data:
  train: {format: semantic_png, images: CELLS/images, masks: CELLS/masks, category: cell,
          exclude: ["val*"]}
  val: {format: semantic_png, images: CELLS/images, masks: CELLS/masks, category: cell,
        include: ["val*"]}
  train_transforms:
    - {name: horizontal_flip}
    - {name: elastic, sigma: 2}
    - {name: random_window, height: 40, width: 44}
  targets: {cells: components, weight_map: {w0: 5, sigma: 3}}
  batch_size: 2
  val_batch_size: 2
  workers: 0
train:
  epochs: 8
  optimizer: {name: adamw, lr: 2.0e-2}
  schedule: {name: cosine, warmup_steps: 1}
  clip_norm: 5.0
  eval_every: 4
  log_every: 1
evaluation: {maps: [semantic, em, threshold]}
output: runs/cells
"""
OBJECTS = "model.instances={name: components, min_area: 4}"


def write_cells(root: Path, name: str, seed: int) -> None:
    """Bright discs on a dark ground: a gray image, its mask of 0 and 255, and the disc's ids."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((48, 52), np.uint8)
    for number, (y, x) in enumerate([(12, 13), (14, 38), (35, 24)], start=1):
        shift = generator.integers(-3, 4, 2).tolist()
        cv2.circle(ids, (x + shift[0], y + shift[1]), 6, number, -1)
    noise = generator.normal(0, 10, ids.shape)
    image = (60 + 130 * (ids > 0) + noise).clip(0, 255).astype(np.uint8)
    mask = np.where(ids > 0, 255, 0).astype(np.uint8)
    for folder, pixels in (("images", image), ("masks", mask), ("ids", ids)):
        (root / folder).mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / folder / f"{name}.png"), pixels)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train and three to validate; only to be read."""
    root = tmp_path_factory.mktemp("cells")
    for i in range(4):
        write_cells(root, f"train{i}", i)
    for i in range(3):
        write_cells(root, f"val{i}", 10 + i)
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, cells: Path) -> Path:
    path = tmp_path_factory.mktemp("config") / "cells.yaml"
    path.write_text(CONFIG.replace("CELLS", str(cells)))
    return path


@pytest.fixture(scope="module")
def unet_run(config: Path) -> Path:
    """The folder of a finished training; only to be read."""
    run = config.parent / "run"
    assert train.main(["--config", str(config), "--output", str(run)]) == 0
    return run


@pytest.fixture
def scored(config: Path, unet_run: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs eval_maps with further arguments and returns what it writes."""

    def command(*more: str) -> dict[str, Any]:
        file = tmp_path / "scores.json"
        weights = str(unet_run / "final.safetensors")
        argv = ["--config", str(config), "--weights", weights, "--json", str(file), *more]
        assert eval_maps.main([*argv, "--replicates", "20"]) == 0
        scores: dict[str, Any] = json.loads(file.read_text())
        return scores

    return command


def untrained(path: Path, config: Path, names: list[str], *overrides: str) -> list[str]:
    """Arguments for a model as it is before any training."""
    loaded = load_config(config, Config, overrides)
    model = build_model(loaded.model, num_classes=len(names), load_backbone=False)
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    about = describe_weights(inference_config(loaded), categories)
    save_weights(path, model.state_dict(), {METADATA_KEY: json.dumps(about)})
    return ["--config", str(config), "--weights", str(path), *overrides]


# --- training -----------------------------------------------------------------------------------


def test_training_learns_and_logs_all_that_is_asked_for(unet_run: Path) -> None:
    history = rows(unet_run, "train")
    assert len(history) == 16
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert {"loss_cross_entropy", "loss_dice"} <= history[0].keys()
    first, last = rows(unet_run, "eval")
    assert (first["epoch"], last["epoch"]) == (4, 8)
    assert last["semantic/jaccard"] > 0.7
    assert {"em/v_rand", "threshold/f1_threshold"} <= last.keys()
    assert (unet_run / "best.safetensors").is_file()


def test_a_resumed_run_ends_as_an_undisturbed_one(
    config: Path, unet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two checkpoints, in the middle of an epoch, with dropout and a weight map."""

    class PowerCut(Exception):
        pass

    done = 0
    step = torch.optim.AdamW.step

    def cut(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == 6:
            raise PowerCut
        return step(*args, **kwargs)

    run = tmp_path / "run"
    argv = ["--config", str(config), "--output", str(run), "train.save_every=3"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", cut)
        with pytest.raises(PowerCut):
            train.main(argv)
    assert not (run / "final.safetensors").exists()
    assert train.main([*argv, "--resume"]) == 0
    tensors, expected = (load_weights(r / "final.safetensors")[0] for r in (run, unet_run))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    for kind in ("train", "eval"):
        assert rows(run, kind) == rows(unet_run, kind)


def test_classes_that_overlap(
    config: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two classes, each with a channel of its own; their mean chooses the best model."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (cells / "ids").iterdir():
        ids = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(masks / path.name), np.minimum(ids, 2))
    classes = [
        f"data.{part}={{format: semantic_png, images: {cells}/images, masks: {masks}, "
        "classes: {left: 1, right: 2}, background: 0, include: ['val*']}"
        for part in ("train", "val")
    ]
    overrides = [
        *classes, "model.classes=multilabel", "model.loss={bce: 1}", "evaluation.maps=[semantic]",
        "train.epochs=1", "train.schedule.warmup_steps=0",
    ]  # fmt: skip
    run = tmp_path / "run"
    argv = ["--config", str(config), *overrides]
    assert train.main([*argv, "--output", str(run)]) == 0
    (row,) = rows(run, "eval")
    capsys.readouterr()
    weights = str(run / "best.safetensors")
    file = tmp_path / "scores.json"
    assert eval_maps.main([*argv, "--weights", weights, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "  left: pixel_accuracy " in printed
    assert "  right: pixel_accuracy " in printed
    scores = json.loads(file.read_text())["semantic"]
    assert scores["stats"]["jaccard"] == row["semantic/jaccard"]
    mean = sum(own["jaccard"] for own in scores["per_class"].values()) / 2
    assert mean == pytest.approx(row["semantic/jaccard"])


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_printed_and_written_with_intervals(
    scored: Callable[..., dict[str, Any]], unet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = scored()
    printed = capsys.readouterr().out
    row = rows(unet_run, "eval")[-1]
    assert list(scores) == ["semantic", "em", "threshold"]
    for kind, figures in scores.items():
        assert f"{kind}: 3 images" in printed
        for name, value in figures["stats"].items():
            assert value == row[f"{kind}/{name}"]
            interval = figures["intervals"][name]
            assert interval["value"] == value
            assert interval["low"] <= value <= interval["high"]
    assert "95 % interval" in printed
    jaccard = scores["semantic"]["intervals"]["jaccard"]
    assert f"{jaccard['low']:.4f} to {jaccard['high']:.4f}" in printed
    cell = scores["semantic"]["per_class"]["cell"]
    assert f"  cell: accuracy {cell['accuracy']:.4f}, jaccard {cell['jaccard']:.4f}" in printed
    assert scores["semantic"]["pixels"] == 3 * 48 * 52


def test_one_metric_without_intervals(
    scored: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = scored("--metric", "threshold", "--confidence", "0.9")
    assert list(scores) == ["threshold"]
    assert "90 % interval" in capsys.readouterr().out
    alone = scored("data.val.include=[val0.png]")["semantic"]["intervals"]["jaccard"]
    assert alone["low"] is alone["high"] is None


def test_tiles_say_what_the_whole_image_says(scored: Callable[..., dict[str, Any]]) -> None:
    """The net is unpadded: its result is the same, not only close."""
    whole, tiled = scored(), scored("--tile", "60")
    for kind, figures in whole.items():
        assert tiled[kind]["stats"] == pytest.approx(figures["stats"], abs=1e-6)
    assert tiled["semantic"]["confusion"] == whole["semantic"]["confusion"]
    blended = scored("--tile", "60", "--blend")
    assert blended["semantic"]["stats"] == pytest.approx(whole["semantic"]["stats"], abs=1e-3)


def test_thresholds_other_than_one_half(scored: Callable[..., dict[str, Any]]) -> None:
    def cells_found(scores: dict[str, Any]) -> int:
        return sum(row[1] for row in scores["semantic"]["confusion"])

    most = cells_found(scored("model.threshold=0.01"))
    half = cells_found(scored())
    least = cells_found(scored("model.threshold=0.99"))
    assert most > half > least
    for method in ("otsu", "local"):
        scores = scored("--adaptive", method, "model.threshold=0.99")
        assert least < cells_found(scores) < most
        assert scores["semantic"]["stats"]["jaccard"] > 0.5


def test_objects_of_maps_are_scored_as_a_detectors(
    config: Path,
    cells: Path,
    unet_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    val = f"{{format: instance_png, images: {cells}/images, masks: {cells}/ids, category: cell, "
    overrides = [OBJECTS, "data.val=" + val + "include: ['val*']}"]
    argv = ["--config", str(config), "--weights", str(unet_run / "final.safetensors"), *overrides]
    coco, bowl = tmp_path / "coco.json", tmp_path / "bowl.json"
    assert evaluate.main([*argv, "--json", str(coco)]) == 0
    scores = json.loads(coco.read_text())
    assert scores["segm"]["stats"]["AP50"] > 0.8
    assert scores["bbox"]["images"] == 3
    assert eval_maps.main([*argv, "--json", str(bowl)]) == 0
    assert "dsb: 3 images" in capsys.readouterr().out
    stats = json.loads(bowl.read_text())["dsb"]["stats"]
    assert stats["AP50"] > 0.8
    assert eval_maps.main([*argv, "--json", str(bowl), "--score", "0.9999"]) == 0
    assert json.loads(bowl.read_text())["dsb"]["stats"]["AP"] < stats["AP"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pictures side by side: noise, and the same inverted."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(4):
        left = np.random.default_rng(i).integers(0, 256, (24, 20, 3)).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{i}.png"), np.concatenate([left, 255 - left], axis=1))
    return folder


def test_pictures_of_pictures(
    config: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{{format: image_pairs, folder: {pairs}"
    overrides = [
        "model={name: pix2pix, width: 4, depth: 3}",
        f"data.train={source}, jitter: {{resize: 28, crop: 24}}}}",
        f"data.val={source}}}",
        "data.train_transforms=[]",
        "train.epochs=2",
    ]
    run, file = tmp_path / "run", tmp_path / "scores.json"
    argv = ["--config", str(config), *overrides]
    assert train.main([*argv, "--output", str(run)]) == 0
    assert {"loss_gan", "loss_l1", "loss_discriminator"} <= rows(run, "train")[0].keys()
    row = rows(run, "eval")[-1]
    weights = str(run / "final.safetensors")
    assert eval_maps.main([*argv, "--weights", weights, "--json", str(file)]) == 0
    assert "image: 4 images" in capsys.readouterr().out
    scores = json.loads(file.read_text())["image"]
    assert scores["stats"]["psnr"] == pytest.approx(row["image/psnr"])
    decibels = scores["intervals"]["psnr"]
    assert decibels["low"] < decibels["value"] < decibels["high"]
    refused(evaluate.main, [*argv, "--weights", weights], capsys, "eval_maps.py")
    tile = [*argv, "--weights", weights, "--tile", "64"]
    refused(eval_maps.main, tile, capsys, "--tile is for models that predict class maps")


# --- what is refused ----------------------------------------------------------------------------


def test_coco_scores_are_for_objects(
    config: Path, unet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(config), "--weights", str(unet_run / "final.safetensors")]
    refused(evaluate.main, argv, capsys, str(config), "tools/eval_maps.py", "model.instances")


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
    config: Path,
    unet_run: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--config", str(config), "--weights", str(unet_run / "final.safetensors"), *more]
    refused(eval_maps.main, argv, capsys, *words)


def test_a_tile_below_the_overlap(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    padded = "model.network={name: unet, width: 2, depth: 4}"
    argv = untrained(tmp_path / "w.safetensors", config, ["cell"], padded)
    refused(eval_maps.main, [*argv, "--tile", "16"], capsys, "--tile 16: ", "too small")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--adaptive", "otsu"], ["--adaptive", "3 that exclude each other"]),
        (["--metric", "em"], ["em", "one class", "has 2"]),
    ],
)
def test_metrics_of_one_foreground(
    config: Path,
    cells: Path,
    tmp_path: Path,
    more: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    val = f"data.val={{format: semantic_png, images: {cells}/images, masks: {cells}/ids, "
    val += "classes: {left: 1, right: 2}, ignore: 3}"
    argv = untrained(tmp_path / "w.safetensors", config, ["left", "right"], val)
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
    config: Path,
    tmp_path: Path,
    override: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--config", str(config), "--output", str(tmp_path / "run"), override]
    refused(train.main, argv, capsys, *words)
