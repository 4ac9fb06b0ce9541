"""Overfitting a few images: the configuration it makes, its training, and the verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.cli.overfit import overfit, overfit_verdict
from instseg.cli.train import train
from instseg.config.build import read_index
from instseg.config.build_data import read_pairs
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.config.schema_source import ImagePairsSource
from instseg.data.shards.writer import write_shards

from .tiny import rows


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
        "(tools/predict.py), and check the classes and data.val_transforms."
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


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture
def sharded(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The training images in shards, of which the first has no object and the second a crowd."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    coco = json.loads((shapes / "train" / "annotations.json").read_text())
    first, second, *_ = (image["id"] for image in coco["images"])
    coco["annotations"] = [
        a | {"iscrowd": int(a["image_id"] == second)}
        for a in coco["annotations"]
        if a["image_id"] != first
    ]
    folder = tmp_path / "shards"
    write_shards(coco, shapes / "train" / "images", folder, source="x", shard_bytes=2**14)
    assert len(list(folder.glob("*.tar"))) > 1
    return folder


def test_shards_are_chosen_by_the_names_that_include_knows(
    config: Path, shapes: Path, sharded: Path
) -> None:
    source = f"{{format: shards, folder: {sharded}, exclude: ['*3.png']}}"
    base = load_config(
        config, Config,
        [f"data.train={source}", "data.shard_window=1", "data.sampling={name: class_aware}"],
    )  # fmt: skip
    coco = json.loads((shapes / "train" / "annotations.json").read_text())
    expected = [coco["images"][i] for i in (2, 4, 5)]
    made = overfit(base, 3)
    assert made.data.train.include == [image["file_name"] for image in expected]
    for part in ("train", "val"):
        index = read_index(getattr(made.data, part), need_masks=True)
        assert [record.image_id for record in index.records] == [i["id"] for i in expected]
    assert made.data.shard_window is None


def test_shards_are_learnt_from(config: Path, sharded: Path, tmp_path: Path) -> None:
    source = f"{{format: shards, folder: {sharded}}}"
    overrides = [f"data.train={source}", f"data.val={source}", f"output={tmp_path / 'run'}"]
    made = overfit(load_config(config, Config, overrides), 2, updates=3)
    assert train(made).status == "finished"
    assert "segm/AP on the 2 images is" in overfit_verdict(made)


# --- pairs of pictures --------------------------------------------------------------------------

PIX2PIX = ["data.copy_paste=null", "data.train_transforms=[]", "data.val_transforms=[]"]


@pytest.fixture
def pairs(config: Path, tmp_path: Path) -> list[str]:
    """Overrides for three pairs: rectangles on a gray ground, and the same with colours changed."""
    for i, name in enumerate(("b[1]", "c", "a")):
        picture = np.full((32, 40, 3), 90, np.uint8)
        cv2.rectangle(picture, (4 + 3 * i, 6), (24 + 2 * i, 20), (220, 60, 30), -1)
        for folder, pixels in (("inputs", picture), ("targets", 255 - picture[..., ::-1])):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / "pairs" / folder / f"{name}.png"), pixels)
    folder = tmp_path / "pairs"
    return [
        "model={name: pix2pix, width: 8, depth: 3}", *PIX2PIX,
        f"data.train={{format: image_pairs, folder: {folder}, jitter: {{resize: 28, crop: 24}}}}",
        f"data.val={{format: image_pairs, folder: {folder}}}",
        "train.optimizer={name: adamw, lr: 1.0e-2, weight_decay: 0, betas: [0.5, 0.999]}",
        "train.clip_norm=null", f"output={tmp_path / 'run'}",
    ]  # fmt: skip


def test_the_first_pairs_are_taken_as_they_are(config: Path, pairs: list[str]) -> None:
    made = overfit(load_config(config, Config, pairs), 2)
    for source in (made.data.train, made.data.val):
        assert isinstance(source, ImagePairsSource)
        assert source.jitter is None
        assert [pair.name for pair in read_pairs(source)] == ["a.png", "b[1].png"]
    excluding = load_config(config, Config, [*pairs, "data.train.exclude=['b*']"])
    assert overfit(excluding, 5).data.train.include == ["a.png", "c.png"]


def test_pictures_that_can_be_learnt(config: Path, pairs: list[str]) -> None:
    made = overfit(load_config(config, Config, pairs), 2, updates=40)
    assert train(made).status == "finished"
    text = overfit_verdict(made)
    history = rows(made.output, "train")
    first, last = history[0]["loss_l1"], history[-1]["loss_l1"]
    assert text.startswith(f"The L1 loss went from {first:.4g} to {last:.4g}; image/ssim on the 2")
    assert text.endswith("Model and data can learn.")


@pytest.mark.parametrize(
    ("last", "advice"),
    [
        (40.0, "what is asked for: look at the predictions (tools/predict.py), and check whether"),
        (90.0, "does not learn these images: try another train.optimizer.lr, and check whether"),
    ],
)
def test_pictures_that_are_not_learnt(
    config: Path, pairs: list[str], last: float, advice: str
) -> None:
    """The adversary's losses say nothing, nor does a score in decibels."""
    base = load_config(config, Config, [*pairs, "train.best_metric=image/psnr"])
    made = overfit(base, 1)
    made.output.mkdir()
    history = [
        {"kind": "train", "loss": 100.0, "loss_l1": 99.0},
        {"kind": "train", "loss": 95.0 if last < 50 else 9.0, "loss_l1": last},
        {"kind": "eval", "image/psnr": 11.0, "image/ssim": 0.2},
    ]
    (made.output / "metrics.jsonl").write_text("\n".join(map(json.dumps, history)) + "\n")
    text = overfit_verdict(made)
    assert text.startswith(f"The L1 loss went from 99 to {last:g}; image/ssim on the 1 images is 0")
    assert advice in text
    assert text.endswith("the pairs match.")


def test_pairs_for_another_model_are_refused(config: Path, pairs: list[str]) -> None:
    others = load_config(config, Config, [o for o in pairs if not o.startswith("model")])
    with pytest.raises(ConfigError, match=r"has no objects: it is for the model pix2pix"):
        overfit(others, 2)
