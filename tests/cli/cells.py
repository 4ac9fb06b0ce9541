"""Gray pictures of bright discs with their masks, and a tiny U-Net that learns them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from instseg.config.build_model import build_model
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config
from instseg.engine.weights import METADATA_KEY, save_weights

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


def untrained(path: Path, config: Path, names: list[str], *overrides: str) -> list[str]:
    """Arguments for a model as it is before any training."""
    loaded = load_config(config, Config, overrides)
    model = build_model(loaded.model, num_classes=len(names), load_backbone=False)
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    about = describe_weights(inference_config(loaded), categories)
    save_weights(path, model.state_dict(), {METADATA_KEY: json.dumps(about)})
    return ["--config", str(config), "--weights", str(path), *overrides]
