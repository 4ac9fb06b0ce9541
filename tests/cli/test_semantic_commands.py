"""Semantic models through the commands: training, resuming, scores of maps, objects, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from instseg.cli import eval_maps, evaluate, train
from instseg.engine.weights import load_weights

from .cells import OBJECTS
from .tiny import refused, rows


@pytest.fixture
def scored(cells_config: Path, unet_run: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs eval_maps with further arguments and returns what it writes."""

    def command(*more: str) -> dict[str, Any]:
        file = tmp_path / "scores.json"
        weights = str(unet_run / "final.safetensors")
        argv = ["--config", str(cells_config), "--weights", weights, "--json", str(file), *more]
        assert eval_maps.main([*argv, "--replicates", "20"]) == 0
        scores: dict[str, Any] = json.loads(file.read_text())
        return scores

    return command


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
    cells_config: Path, unet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    argv = ["--config", str(cells_config), "--output", str(run), "train.save_every=3"]
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
    cells_config: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    argv = ["--config", str(cells_config), *overrides]
    assert train.main([*argv, "--output", str(run)]) == 0
    (row,) = rows(run, "eval")
    capsys.readouterr()
    weights = str(run / "best.safetensors")
    file = tmp_path / "scores.json"
    assert eval_maps.main([*argv, "--weights", weights, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert " left: pixel_accuracy " in printed
    assert " right: pixel_accuracy " in printed
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
    cell = scores["semantic"]["per_class"]["cell"]["jaccard"]
    own = scores["semantic"]["intervals"]["cell: jaccard"]
    assert own["value"] == cell
    row_of_cell = next(line for line in printed.splitlines() if " cell: jaccard " in line)
    assert f"{cell:.4f}" in row_of_cell
    assert f"{own['low']:.4f} to {own['high']:.4f}" in row_of_cell
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
    cells_config: Path,
    cells: Path,
    unet_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    val = f"{{format: instance_png, images: {cells}/images, masks: {cells}/ids, category: cell, "
    overrides = [OBJECTS, "data.val=" + val + "include: ['val*']}"]
    argv = [
        "--config",
        str(cells_config),
        "--weights",
        str(unet_run / "final.safetensors"),
        *overrides,
    ]
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
    cells_config: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{{format: image_pairs, folder: {pairs}"
    overrides = [
        "model={name: pix2pix, width: 4, depth: 3}",
        f"data.train={source}, jitter: {{resize: 28, crop: 24}}}}",
        f"data.val={source}}}",
        "data.train_transforms=[]",
        "data.targets={}",
        "train.epochs=2",
    ]
    run, file = tmp_path / "run", tmp_path / "scores.json"
    argv = ["--config", str(cells_config), *overrides]
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
