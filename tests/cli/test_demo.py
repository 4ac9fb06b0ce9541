"""The demonstration, small: it leaves what it promises, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from instseg.cli.demo import main
from instseg.data.synthetic import CLASSES

from .tiny import rows

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["--config", str(ROOT / "configs" / "demo" / "mask_rcnn.yaml")]
ARGUMENTS += ["--train-images", "6", "--val-images", "3"]
OVERRIDES = ["train.epochs=1", "train.schedule.warmup_steps=1", "data.batch_size=2"]
OVERRIDES += ["model.box_head.score_threshold=0.0"]


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a: #1 ${odd} [name]"
    argv = [*ARGUMENTS, "--output", str(output), *OVERRIDES]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    table = (output / "ap.txt").read_text()
    assert table in shown
    assert "Evaluate annotation type *segm*" in table
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] =" in table
    assert all(name in table for name in CLASSES)
    scores = json.loads((output / "scores.json").read_text())
    (last,) = rows(output, "eval")
    for kind in ("bbox", "segm"):  # the best weights are those of the only evaluation
        assert {f"{kind}/{k}": v for k, v in scores[kind]["stats"].items()}.items() <= last.items()
    pictures = {name: cv2.imread(str(output / name)) for name in ("curves.png", "predictions.png")}
    assert all(picture.std() > 5 for picture in pictures.values())
    assert pictures["predictions.png"].shape[1] > 3 * 2 * 160  # three columns at twice the size
    for part, count in (("train", 6), ("val", 3)):
        assert len(list((output / "data" / part / "images").iterdir())) == count

    files = ("data/train/annotations.json", "final.safetensors", "metrics.jsonl", "ap.txt")
    before = {name: (output / name).read_bytes() for name in files}
    drawn = (output / "data/train/annotations.json").stat().st_mtime_ns
    assert main(argv) == 0
    assert "resumed from" in capsys.readouterr().err
    assert {name: (output / name).read_bytes() for name in files} == before
    assert (output / "data/train/annotations.json").stat().st_mtime_ns == drawn
    for path in output.glob("*.safetensors"):
        path.unlink()  # 350 MB are not kept after the test


def test_a_mistake_is_found_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert main([*ARGUMENTS, "--output", str(output), "train.epoch=1"]) == 2
    assert "unknown key 'epoch' in train; did you mean 'epochs'?" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("option", ["--train-images", "--val-images"])
def test_a_demo_needs_images(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([option, "0", "--output", str(tmp_path)])
    assert exit_.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
