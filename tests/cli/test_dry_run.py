"""A dry run: what it tells is true of a training, and it leaves nothing behind."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from instseg.cli.dry_run import dry_run
from instseg.cli.dry_run_tables import batch_rows, parameter_table
from instseg.config.build import build_model, read_index
from instseg.config.loader import ConfigError, load_config
from instseg.config.schema import Config
from instseg.data.coco import load_coco
from instseg.data.shards.writer import write_shards
from instseg.engine.errors import NonFiniteLossError
from instseg.structures import Instances, SemanticMap
from instseg.structures.image_target import ImageTarget

from .tiny import write_config


def printed(path: Path, output: Path, *overrides: str) -> str:
    """What a dry run into ``output`` prints."""
    file = io.StringIO()
    config = load_config(path, Config, [*overrides, f"output={output}"])
    assert dry_run(config, Console(file=file, width=200)) == 0
    return file.getvalue()


def cells_of(text: str, first: str) -> list[str]:
    """The cells of the one table row that begins with ``first``."""
    rows = [re.split(r"\s*[│┃]\s*", line.strip(" │┃")) for line in text.splitlines()]
    (found,) = (row for row in rows if row[0].startswith(first))
    return found


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> str:
    root = tmp_path_factory.mktemp("dry")
    path = write_config(root, shapes)
    text = printed(path, root / "runs" / "a")
    assert [p.name for p in root.iterdir()] == [path.name]  # nothing left behind
    return text


def test_parameters_are_those_of_the_model(report: str, config: Path) -> None:
    loaded = load_config(config, Config)
    classes = read_index(loaded.data.train, need_masks=True).class_names
    model = build_model(loaded.model, num_classes=len(classes))
    for name in ("backbone", "neck", "rpn", "box_head", "mask_head", "whole"):
        part = model if name == "whole" else getattr(model, name)
        values = sum(p.numel() for p in part.parameters())
        row = cells_of(report, name)
        assert row[1:5] == [str(len(list(part.parameters()))), f"{values:,}", f"{values:,}", "0"]
        assert row[5] == f"{values * 4 / 2**20:,.1f} MiB"


def test_learning_rates_are_those_of_the_schedule(report: str) -> None:
    """24 steps at 0.002: a warm-up of 2 from a thousandth, then half a cosine."""
    assert cells_of(report, "first step, 1")[1] == "2e-06"
    assert (
        cells_of(report, "last step of the warm-up, 2")[1] == f"{0.002 * (0.001 + 0.999 / 2):.3g}"
    )
    last = 0.002 * (1 + math.cos(math.pi * 21 / 22)) / 2
    assert cells_of(report, "last step, 24")[1] == f"{last:.3g}"


def test_sizes_of_files_are_those_of_a_training(report: str, trained: Path) -> None:
    for name, file in (("checkpoint", "last"), ("weights", "final")):
        actual = (trained / f"{file}.safetensors").stat().st_size / 2**20
        assert float(cells_of(report, name)[1].split()[0]) == pytest.approx(actual, abs=0.06)
    values = {name: cells_of(report, name)[1] for name in ("checkpoint", "weights", "room")}
    checkpoint, weights, room = (float(v.split()[0]) for v in values.values())
    assert room == pytest.approx(3 * checkpoint + 2 * weights, abs=0.3)


def test_images_losses_times_and_memory_are_told(report: str) -> None:
    assert "8 training images, 6 validation images" in report
    assert "first batch: 2 images" in report
    assert re.search(r"\.png\s+│ (64 x 64|56 x 56)\s+│ \d objects", report)
    assert float(cells_of(report, "loss_mask")[1]) > 0
    step = float(cells_of(report, "step")[1].removesuffix(" s"))
    epoch = float(cells_of(report, "epoch of 4 steps")[1].removesuffix(" s"))
    assert epoch == pytest.approx(4 * step, rel=0.02)
    scoring = float(cells_of(report, "evaluation of 3 batches")[1].removesuffix(" s"))
    whole = cells_of(report, "training of 6 epochs, 2 evaluations")[1]
    seconds = float(whole.split()[0]) * (60 if whole.endswith("min") else 1)
    assert seconds == pytest.approx(24 * step + 2 * scoring, rel=0.05)


def test_peaks_are_those_that_were_measured(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How they are measured: tests/engine/test_memory.py."""

    class Measured:
        def __init__(self, device: torch.device) -> None:
            self.peaks = iter([3 * 2**20, 5 * 2**20])

        def restart(self) -> None:
            pass

        def peak(self) -> int:
            return next(self.peaks)

    monkeypatch.setattr("instseg.cli.dry_run.PeakMemory", Measured)
    text = printed(config, tmp_path / "run")
    assert cells_of(text, "peak in training")[1] == "3.0 MiB"
    assert cells_of(text, "peak in evaluation")[1] == "5.0 MiB"


def test_a_run_that_is_there_stays_as_it_is(config: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = files(tmp_path)
    text = printed(config, run)
    assert files(tmp_path) == before
    # Its files will be replaced, so that room for one more checkpoint is enough.
    room, checkpoint = (float(cells_of(text, n)[1].split()[0]) for n in ("room", "checkpoint"))
    assert room == pytest.approx(checkpoint, abs=0.3)


def test_a_step_of_more_batches_than_there_are(config: Path, tmp_path: Path) -> None:
    text = printed(config, tmp_path / "run", "train.accumulate=3")
    assert cells_of(text, "epoch of 2 steps")
    assert cells_of(text, "last step, 12")


def test_maps(cells_config: Path, tmp_path: Path) -> None:
    text = printed(cells_config, tmp_path / "run")
    assert re.search(r"train\d\.png\s+│ 40 x 44\s+│ labels 0, 1", text)
    assert cells_of(text, "network.encoder")
    assert cells_of(text, "loss_dice")
    assert not list(tmp_path.iterdir())


def test_too_little_room(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 4096))
    with pytest.raises(ConfigError, match=rf"{tmp_path}/run: the run needs .* but 0.0 MiB are fr"):
        printed(config, tmp_path / "run")


def test_what_is_not_finite(config: Path, tmp_path: Path) -> None:
    overrides = ["train.optimizer.lr=1.0e+30", "train.schedule.warmup_steps=0"]
    with pytest.raises(NonFiniteLossError, match=r"in the first two steps.* without --dry-run"):
        printed(config, tmp_path / "run", *overrides)
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_a_signal_ends_it(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    loaded = load_config(config, Config, [f"output={tmp_path / 'run'}"])
    assert dry_run(loaded, Console(file=io.StringIO())) == 3
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


class Shared(nn.Module):
    """Two parts with one tensor in common, one of them frozen in part, and a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))


def test_shared_frozen_and_own_tensors() -> None:
    file = io.StringIO()
    model = nn.Sequential(Shared())
    Console(file=file, width=200).print(parameter_table(model))
    text = file.getvalue()
    assert cells_of(text, "0.first")[1:5] == ["2", "16", "16", "0"]
    assert cells_of(text, "0.second")[1:5] == ["1", "4", "0", "4"]
    assert cells_of(text, "others")[1:5] == ["1", "5", "5", "0"]
    assert cells_of(text, "whole")[1:5] == ["4", "25", "21", "4"]


def test_targets_in_words() -> None:
    objects = Instances(
        (9, 8), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64),
        is_crowd=torch.tensor([False, True, False]),
    )  # fmt: skip
    labels = torch.tensor([[0, 255], [2, 2]], dtype=torch.uint8)
    targets = [
        objects,
        SemanticMap(labels),
        SemanticMap((labels == 2).to(torch.uint8)[None]),
        ImageTarget(torch.zeros(3, 5, 6)),
    ]
    batch = SimpleNamespace(
        paths=["a/b.png"] * 4, images=[torch.zeros(3, 9, 8)] * 4, targets=targets
    )
    assert [row[2] for row in batch_rows(batch)] == [
        "2 objects, 1 crowd regions",
        "labels 0, 2, 255",
        "labels 0, 1 in overlapping maps",
        "picture of 5 x 6",
    ]
    assert batch_rows(batch)[0][:2] == ("b.png", "9 x 8")


def test_replicas_make_larger_steps(config: Path, tmp_path: Path) -> None:
    """Two of two images: two steps an epoch, and AdamW's rate times the square root of two."""
    text = printed(config, tmp_path / "run", "train.replicas=2")
    assert "epoch of 2 steps" in text
    assert "0.002 x 1.414" in text


def test_shards(
    config: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from their files; the window of shards is no hindrance."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    coco = load_coco(shapes / "train" / "annotations.json")
    write_shards(coco, shapes / "train" / "images", folder, source="x", shard_bytes=2**14)
    source = f"data.train={{format: shards, folder: {folder}}}"
    text = printed(config, tmp_path / "run", source, "data.shard_window=2")
    assert "8 training images, 6 validation images" in text
    assert re.search(r"tar#\d+\.png\s+│ (64 x 64|56 x 56)\s+│ \d objects", text)
    assert cells_of(text, "epoch of 4 steps")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "shards", config.name]


def test_pairs_of_pictures(config: Path, tmp_path: Path) -> None:
    for i in range(3):
        both = np.random.default_rng(i).integers(0, 256, (24, 40, 3)).astype(np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "pairs" / f"{i}.png"), both)
    source = f"{{format: image_pairs, folder: {tmp_path / 'pairs'}"
    text = printed(
        config, tmp_path / "run", "model={name: pix2pix, width: 4, depth: 3}",
        "data.copy_paste=null", "data.train_transforms=[]", "data.val_transforms=[]",
        f"data.train={source}, jitter: {{resize: 20, crop: 16}}}}", f"data.val={source}}}",
    )  # fmt: skip
    assert "3 training pairs of pictures" in text
    assert re.search(r"\d\.png\s+│ 16 x 16\s+│ picture of 16 x 16", text)
    assert cells_of(text, "epoch of 2 steps")
    assert cells_of(text, "evaluation of 2 batches")
    assert float(cells_of(text, "loss_l1")[1]) > float(cells_of(text, "loss_gan")[1]) > 0
    assert cells_of(text, "generator")
    assert cells_of(text, "discriminator")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs", config.name]
