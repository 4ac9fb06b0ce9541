"""What a training leaves behind, and from what weights it can start."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instseg.cli.train import main
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.data.synthetic import CLASSES
from instseg.engine.weights import load_weights
from instseg.evaluation.coco import METRIC_NAMES

from .tiny import STEPS, rows, write_config


def train(config: Path, output: Path, *arguments: str) -> Path:
    assert main(["--config", str(config), "--output", str(output), *arguments]) == 0
    return output


def metadata(path: Path) -> Any:
    return json.loads(load_weights(path)[1]["instseg"])


def test_the_folder_of_a_run(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "metrics.csv",
        "tensorboard",
        "last.safetensors",
        "previous.safetensors",
        "best.safetensors",
        "final.safetensors",
    }
    written = load_config(trained / "config.yaml", Config)
    given = load_config(trained.parent / "tiny.yaml", Config)
    alone = given.train.model_copy(update={"replicas": 1})
    assert written == given.model_copy(update={"output": trained, "train": alone})
    versions = json.loads((trained / "versions.json").read_text())
    assert versions["torch"] == version("torch")
    assert {"instseg", "python", "platform", "torchvision", "hotcoco"} <= versions.keys()


def test_every_metric_is_in_every_log(trained: Path) -> None:
    training, scores = rows(trained, "train", without=()), rows(trained, "eval")
    assert [row["step"] for row in training] == list(range(1, STEPS + 1))
    assert [(row["epoch"], row["step"]) for row in scores] == [(3, STEPS // 2), (6, STEPS)]
    for row in training:
        parts = [row[key] for key in row if key.startswith("loss_")]
        assert len(parts) == 5
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert row["images_per_second"] > 0
        assert row["grad_norm"] > 0
    names = {f"{kind}/{name}" for kind in ("bbox", "segm") for name in METRIC_NAMES}
    assert all(names <= row.keys() for row in scores)

    with (trained / "metrics.csv").open() as file:
        table = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert table == [{k: str(v) for k, v in line.items()} for line in lines]

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert drawn == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in training]
    assert [e.value for e in events.Scalars("eval/bbox/AR100")] == [
        pytest.approx(row["bbox/AR100"]) for row in scores
    ]


def test_weights_say_what_they_are(trained: Path) -> None:
    about = metadata(trained / "final.safetensors")
    assert [c["name"] for c in about["categories"]] == list(CLASSES)
    assert about["step"] == STEPS
    scores = {row["step"]: row["segm/AP"] for row in rows(trained, "eval")}
    best = metadata(trained / "best.safetensors")["best"]
    assert best["metric"] == "segm/AP"
    assert best["value"] == max(scores.values())
    assert scores[best["step"]] == best["value"]


def test_overrides(config: Path, tmp_path: Path) -> None:
    run = train(
        config,
        tmp_path / "run",
        "train.epochs=1",
        "train.optimizer={name: sgd, lr: 1e-2}",
        "train.schedule={name: multi_step, warmup_steps: 1, milestones: [0.5], gamma: 0.5}",
        "train.ema_decay=null",
        "train.accumulate=2",
        "train.amp=bf16",
        "data.batch_size=1",
        "evaluation.iou_types=[bbox]",
    )
    written = load_config(run / "config.yaml", Config)
    assert written.train.optimizer.name == "sgd"
    assert written.data.batch_size == 1
    # 8 batches of one image, two for each update: warm-up 1, then the milestone at half of 4.
    rates = [row["lr"] for row in rows(run, "train")]
    assert rates == pytest.approx([1e-5, 1e-2, 5e-3, 5e-3])
    (scores,) = rows(run, "eval")
    assert "bbox/AP" in scores
    assert "segm/AP" not in scores


def test_a_detector_without_masks(tmp_path: Path, shapes: Path) -> None:
    config = write_config(
        tmp_path,
        shapes,
        ("mask_rcnn", "faster_rcnn"),
        ("  mask_head: {name: fcn, channels: [16]}\n", ""),
        ("  copy_paste: {p: 0.5}\n", ""),
    )
    run = train(config, tmp_path / "run", "train.epochs=1")
    assert "loss_mask" not in rows(run, "train")[0]
    (scores,) = rows(run, "eval")
    assert not any(key.startswith("segm/") for key in scores)
    assert "bbox/AP" in scores


# --- starting from weights ----------------------------------------------------------------------


def parameters(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The keys that are no figures of a batch norm, which a step moves at any learning rate."""
    return [key for key in tensors if "running_" not in key and "num_batches" not in key]


def test_init_from_takes_every_layer(config: Path, trained: Path, tmp_path: Path) -> None:
    weights = trained / "final.safetensors"
    run = train(
        config,
        tmp_path / "run",
        f"train.init_from.weights={weights}",
        "train.epochs=1",
        "train.optimizer.lr=1e-12",
    )
    before, after = (load_weights(w)[0] for w in (weights, run / "final.safetensors"))
    assert all(torch.allclose(after[k], before[k], atol=1e-9) for k in parameters(before))


def one_class_fewer(shapes: Path, folder: Path) -> Path:
    """A copy of the data set without its first category."""
    shutil.copytree(shapes, folder)
    for part in ("train", "val"):
        path = folder / part / "annotations.json"
        coco = json.loads(path.read_text())
        dropped = coco["categories"].pop(0)["id"]
        coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != dropped]
        path.write_text(json.dumps(coco))
    return folder


def test_init_from_for_other_classes(
    shapes: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, one_class_fewer(shapes, tmp_path / "fewer"))
    weights = trained / "final.safetensors"
    init = [f"train.init_from.weights={weights}", "train.epochs=1", "train.optimizer.lr=1e-12"]
    assert main(["--config", str(config), "--output", str(tmp_path / "refused"), *init]) == 2
    error = capsys.readouterr().err
    assert f"{weights} was trained for {len(CLASSES)} classes ({', '.join(CLASSES[:5])}" in error
    assert f"the data has {len(CLASSES) - 1}" in error
    assert "train.init_from.heads=false" in error
    assert "Traceback" not in error

    run = train(config, tmp_path / "run", *init, "train.init_from.heads=false")
    assert "new weights for box_head.predictor.cls_score.weight" in capsys.readouterr().err
    before, after = (load_weights(w)[0] for w in (weights, run / "final.safetensors"))
    with_background = len(CLASSES) - 1 + 1
    assert len(after["box_head.predictor.cls_score.bias"]) == with_background
    assert len(after["box_head.predictor.bbox_pred.bias"]) == 4 * with_background
    assert len(after["mask_head.predictor.logits.bias"]) == with_background
    others = [key for key in parameters(before) if "predictor" not in key or "upsample" in key]
    assert "box_head.body.fc6.weight" in others
    assert all(torch.allclose(after[key], before[key], atol=1e-9) for key in others)
