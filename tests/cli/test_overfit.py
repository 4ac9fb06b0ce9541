"""Overfitting a few images: the configuration it makes, its training, and the verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from instseg.cli.overfit import overfit, overfit_verdict
from instseg.cli.train import train
from instseg.config.build import read_index
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config


def names_of(config: Config, part: str) -> list[str]:
    index = read_index(getattr(config.data, part), need_masks=True)
    return [record.path.name for record in index.records]


def test_the_first_images_with_objects_are_learnt_and_scored(
    config: Path, shapes: Path, tmp_path: Path
) -> None:
    """The first image has lost its objects, the second has a crowd alone, the third is left out."""
    coco = json.loads((shapes / "train" / "annotations.json").read_text())
    ids = [image["id"] for image in coco["images"]]
    names = [image["file_name"] for image in coco["images"]]
    coco["annotations"] = [
        {**a, "iscrowd": int(a["image_id"] == ids[1])}
        for a in coco["annotations"]
        if a["image_id"] != ids[0]
    ]
    annotations = tmp_path / "some.json"
    annotations.write_text(json.dumps(coco))
    base = load_config(
        config, Config,
        [f"data.train.annotations={annotations}", f"data.train.exclude=['{names[2]}']",
         "train.accumulate=2", "train.log_every=500", "output=runs/x"],
    )  # fmt: skip
    made = overfit(base, 3)
    expected = [Path(name).name for name in names[3:6]]
    assert names_of(made, "train") == names_of(made, "val") == expected
    assert made.data.train_transforms == base.data.val_transforms
    assert made.data.copy_paste is None
    assert made.data.batch_size == 2
    # 3 images in batches of 2, and 2 batches a step: a step an epoch.
    assert (made.train.epochs, made.train.eval_every, made.train.log_every) == (300, 300, 10)
    assert made.train.ema_decay is None
    assert made.train.schedule.warmup_steps == 2
    assert made.output == Path("runs/x-overfit")
    assert made.model == base.model
    assert made.train.optimizer == base.train.optimizer
    assert len(names_of(overfit(base, 100), "train")) == len(ids) - 3
    assert overfit(base, 1).data.batch_size == 1
    rare = load_config(config, Config, ["data.sampling={name: class_aware}", "train.replicas=2"])
    plain = overfit(rare, 8)
    assert plain.data.sampling.name == "shuffle"
    assert plain.train.epochs == 150  # 8 images in batches of 2, two of them a step


def test_a_fold_is_kept_and_patterns_are_no_names(
    cells_config: Path, cells: Path, tmp_path: Path
) -> None:
    """Names with the signs of patterns stand for themselves."""
    root = tmp_path / "cells"
    shutil.copytree(cells, root)
    for folder in ("images", "masks"):
        (root / folder / "train0.png").rename(root / folder / "train[1].png")
    source = f"{{format: semantic_png, images: {root}/images, masks: {root}/masks, category: cell"
    fold = "fold: {folds: 2, index: 0, part: val}}"
    base = load_config(cells_config, Config, [f"data.train={source}, {fold}"])
    first = names_of(base, "train")[:2]
    assert names_of(overfit(base, 2), "train") == first
    plain = load_config(cells_config, Config, [f"data.train={source}, include: ['*[[]1]*']}}"])
    made = overfit(plain, 5)
    assert names_of(made, "train") == ["train[1].png"]


def test_a_model_that_can_learn(cells_config: Path, tmp_path: Path) -> None:
    overrides = [f"output={tmp_path / 'run'}", "model.network.dropout=0.0"]
    base = load_config(cells_config, Config, overrides)
    made = overfit(base, 2, updates=24)
    assert train(made).status == "finished"
    text = overfit_verdict(made)
    assert "semantic/jaccard on the 2 images is" in text
    assert text.endswith("Model and data can learn.")
    rows = [json.loads(line) for line in (made.output / "metrics.jsonl").read_text().splitlines()]
    (scores,) = (row for row in rows if row["kind"] == "eval")
    assert f"{scores['semantic/jaccard']:.3f}" in text
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot(cells_config: Path, tmp_path: Path) -> None:
    base = load_config(
        cells_config, Config, [f"output={tmp_path / 'run'}", "train.optimizer.lr=1.0e-9"]
    )
    made = overfit(base, 1, updates=11)
    train(made)
    assert "does not learn these images" in overfit_verdict(made)


def test_a_loss_that_falls_in_vain(cells_config: Path, tmp_path: Path) -> None:
    made = overfit(load_config(cells_config, Config, [f"output={tmp_path / 'run'}"]), 1)
    made.output.mkdir()
    rows = [
        {"kind": "train", "loss": 2.0}, {"kind": "train", "loss": 0.5},
        {"kind": "eval", "semantic/jaccard": 0.25},
    ]  # fmt: skip
    (made.output / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert overfit_verdict(made) == (
        "The loss went from 2 to 0.5; semantic/jaccard on the 1 images is 0.250. The loss falls, "
        "but what is predicted is not what is asked for: look at the predictions "
        "(tools/predict.py), at the classes, and at data.val_transforms."
    )


def test_what_cannot_be_overfitted(config: Path, shapes: Path, tmp_path: Path) -> None:
    base = load_config(config, Config)
    with pytest.raises(ConfigError, match="--overfit must be at least 1 image, got 0"):
        overfit(base, 0)
    coco = json.loads((shapes / "train" / "annotations.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(coco | {"annotations": []}))
    empty = load_config(config, Config, [f"data.train.annotations={tmp_path}/none.json"])
    with pytest.raises(ConfigError, match=r"data\.train has no object to learn from"):
        overfit(empty, 2)
    pairs = load_config(
        config, Config,
        ["model={name: pix2pix}", "data.train={format: image_pairs, folder: x}",
         "data.copy_paste=null"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="pairs of pictures make a folder of a few of x"):
        overfit(pairs, 2)
