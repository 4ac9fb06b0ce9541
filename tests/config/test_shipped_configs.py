"""The model of every configuration that the project ships can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instseg.config.build import build_model, build_options
from instseg.config.loader import load_config
from instseg.config.schema import Config

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(ROOT.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANNOTATIONS", "IMAGES"):
        monkeypatch.setenv(name, "somewhere")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_model_loader_and_options(path: Path) -> None:
    config = load_config(path, Config, [])
    classes = 1 if getattr(config.model, "classes", None) == "border" else 80
    with torch.device("meta"):  # the shapes alone
        model = build_model(config.model, num_classes=classes, load_backbone=False)
    assert sum(p.numel() for p in model.parameters()) > 100_000
    assert build_options(config).epochs == config.train.epochs
