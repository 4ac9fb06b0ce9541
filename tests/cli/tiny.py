"""A configuration that trains in seconds, and helpers to change it and to read what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
model:
  name: mask_rcnn
  backbone: {name: timm, model: test_resnet, norm: live}
  neck: {channels: 16}
  anchors:
    sizes: [[8], [16], [32], [48], [64]]
  rpn:
    samples: 32
    train_before_nms: 60
    train_after_nms: 30
    test_before_nms: 500
    test_after_nms: 100
  box_head:
    body: {name: fc, channels: 32}
    samples: 16
    score_threshold: 0.0
  mask_head: {name: fcn, channels: [16]}

data:
  train: {format: coco, annotations: SHAPES/train/annotations.json, images: SHAPES/train/images}
  val: {format: coco, annotations: SHAPES/val/annotations.json, images: SHAPES/val/images}
  train_transforms:
    - {name: resize_shortest_edge, sizes: [56, 64], max_size: 96}
    - {name: horizontal_flip}
  val_transforms:
    - {name: resize_shortest_edge, sizes: [72], max_size: 96}
  copy_paste: {p: 0.5}
  batch_size: 2
  val_batch_size: 2
  workers: 0

train:
  epochs: 6
  optimizer: {name: adamw, lr: 2.0e-3}
  schedule: {name: cosine, warmup_steps: 2}
  clip_norm: 5.0
  ema_decay: 0.5
  eval_every: 3
  save_every: 2
  log_every: 1

output: runs/tiny
"""
STEPS = 24
"""What the configuration trains on the eight training images of the ``shapes`` fixture."""

TIMES = ("images_per_second", "data_wait")
"""Figures that depend on the clock and so differ between equal runs."""


def write_config(folder: Path, shapes: Path, *changes: tuple[str, str]) -> Path:
    """Write the configuration with ``changes`` (old text, new text) and return its path."""
    text = CONFIG.replace("SHAPES", str(shapes))
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def line_of(path: Path, text: str) -> str:
    """``FILE:LINE`` of the one line of a file that holds ``text``, as error messages give it."""
    numbers = [i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line]
    assert len(numbers) == 1, numbers
    return f"{path}:{numbers[0]}"


def rows(run: Path, kind: str, without: Sequence[str] = TIMES) -> list[dict[str, Any]]:
    """The rows of one kind in ``metrics.jsonl``, less the keys ``without``."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if row["kind"] == kind]
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def refused(
    command: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    capsys: pytest.CaptureFixture[str],
    *words: str,
) -> str:
    """Run a command that must exit with 2 and a message that has ``words``; returns the message."""
    capsys.readouterr()
    assert command(argv) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    before, mark, message = error.rpartition("error: ")
    assert mark
    assert not before or before.endswith("\n")
    for word in words:
        assert word in message
    return message
