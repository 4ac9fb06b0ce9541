"""A faulty step of a real model, repeated by the command from its folder alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instseg.cli import replay
from instseg.config.build import build_model
from instseg.config.build_parts import build_parts
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config
from instseg.engine.amp import Amp, autocast
from instseg.engine.black_box import BlackBox, FaultyStep, MicroBatch
from instseg.engine.black_box_file import BATCHES, REPORT, WEIGHTS, BlackBoxError
from instseg.engine.buffers import BufferSnapshot
from instseg.engine.rng import micro_batch_seed, seed_everything
from instseg.engine.weights import save_weights

from .tiny import refused, write_config


def make_black_box(config_path: Path, run: Path, amp: Amp | None) -> Path:
    """The first step of a training whose masks' last layer has an infinite weight."""
    config = load_config(config_path, Config)
    parts = build_parts(config)
    seed_everything(0)
    model = build_model(config.model, num_classes=len(parts.categories)).train()
    with torch.no_grad():
        model.get_parameter("mask_head.predictor.logits.weight")[:, 5] = torch.inf
    before = BufferSnapshot(model)
    micro_batches = []
    for number, batch in zip(range(2), parts.train_loader.epoch(0), strict=False):
        seed = micro_batch_seed(0, 0, number)
        seed_everything(seed)
        with autocast(torch.device("cpu"), amp):
            losses = model(batch.images, batch.targets)
        values = {"loss": sum(losses.values()), **losses}
        figures = {name: value.float().item() for name, value in values.items()}
        micro_batches.append(MicroBatch(number, seed, batch, 0.5, figures))
    fault = FaultyStep("loss_mask is nan", 1, 1, 2e-3, amp, 1.0, torch.nan, micro_batches)
    about = describe_weights(inference_config(config), parts.categories)
    BlackBox(run, about).record(model, before, fault)
    return run / "black_box" / "step-000001"


@pytest.fixture(scope="module")
def black_box(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """Of a step in bf16; only to be read."""
    folder = tmp_path_factory.mktemp("replay")
    return make_black_box(write_config(folder, shapes), folder / "run", "bf16")


@pytest.fixture
def copy(black_box: Path, tmp_path: Path) -> Path:
    """Far from the run, its configuration and its data."""
    return Path(shutil.copytree(black_box, tmp_path / "copy"))


def edit_report(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / REPORT).read_text())
    change(content)
    (folder / REPORT).write_text(json.dumps(content))


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_the_same_losses(
    config: Path, tmp_path: Path, amp: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_black_box(config, tmp_path / "run", amp)
    assert replay.main([str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "step 1 (epoch 1, lr 0.002): loss_mask is nan, gradient norm nan" in out
    for number in (0, 1):
        assert f"micro-batch {number}, images [" in out
    assert re.search(r"before the step: mask_head.predictor.logits.weight: 0 NaN and \d+ inf", out)
    assert "forward: first in the output of mask_head.predictor (MaskPredictor)" in out
    assert "forward: outputs of modules" in out
    assert "backward: gradients of those outputs" in out
    assert len(re.findall(r"loss_rpn_box_reg .* equal", out)) == 2
    assert "DIFFERS" not in out
    assert out.endswith("the step is repeated: all losses are equal to the last bit\n")


def test_float32(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(copy), "--float32"]) == 1
    out = capsys.readouterr().out
    assert "repeated on cpu in float32 with 1 threads; the step ran on cpu in bf16" in out
    assert "the losses differ, as they do on another device or in another precision" in out


def test_anomaly(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(copy), "--anomaly"]) == 0
    assert re.search(r"anomaly mode: (.|\n)*Backward0' returned nan", capsys.readouterr().out)


def test_the_seed_matters(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model draws samples, so that equal losses mean equal draws."""
    edit_report(copy, lambda r: r["batches"][1].update(seed=r["batches"][1]["seed"] ^ 1))
    assert replay.main([str(copy)]) == 1
    out = capsys.readouterr().out
    first, second = out.split("micro-batch 1, ")
    assert "DIFFERS" not in first
    assert "DIFFERS" in second
    assert f"versions other than instseg 0.1.0, torch {torch.__version__}" in out


def test_the_number_of_threads_is_the_steps(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def examine(*_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        raise BlackBoxError("enough")

    monkeypatch.setattr(replay, "examine", examine)
    edit_report(copy, lambda r: r.update(threads=2))
    before = torch.get_num_threads()
    assert replay.main([str(copy)]) == 2
    assert (seen, torch.get_num_threads()) == ([2], before)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "report.json: no such file; a black box is a folder like RUN"),
        (lambda f: _cut(f / REPORT), "report.json: cannot be read as JSON"),
        (lambda f: _cut(f / BATCHES), "batches.safetensors: not a complete safetensors file"),
        (lambda f: _cut(f / WEIGHTS), "weights.safetensors: not a complete safetensors file"),
        (lambda f: (f / WEIGHTS).unlink(), "weights.safetensors: no such file"),
        (
            lambda f: save_weights(f / WEIGHTS, {"a": torch.zeros(1)}, {}),
            "weights.safetensors: this file carries no configuration",
        ),
        (
            lambda f: edit_report(f, lambda r: r.update(frozen=["nose"])),
            "the report and the model do not fit: ",
        ),
    ],
)
def test_a_damaged_folder(
    copy: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], message: str
) -> None:
    damage(copy)
    refused(replay.main, [str(copy)], capsys, message)


def test_an_unknown_device(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(replay.main, [str(copy), "--device", "toaster"], capsys, "--device: ")
