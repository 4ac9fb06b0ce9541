"""Published weights of one-stage detectors, converted: they see what the original sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn

from instseg.cli.convert_weights import main
from instseg.config.schema import InitConfig
from instseg.config.trained import load_initial, load_trained
from instseg.engine.errors import CheckpointError
from instseg.inference.predictor import Predictor
from instseg.models.detection.yolox import yolox_nano
from tests.models import test_torchvision_retinanet_parity as retinanet_parity
from tests.models import test_torchvision_ssd_parity as ssd_parity

from .tiny import refused

NAMES = ["cat", "dog", "bird"]
THRESHOLD, MANY = 0.25, 100_000
# Sizes that torchvision, and so the converted file, does not resize.
SIZES = {
    "ssd300_vgg16": (300, 300),
    "ssdlite320_mobilenet_v3_large": (320, 320),
    "retinanet_resnet50_fpn": (32, 1333),
    "retinanet_resnet50_fpn_v2": (32, 1333),
}


def build(name: str) -> nn.Module:
    """Torchvision's model with random weights, for the background and three classes."""
    torch.manual_seed(5)
    model = getattr(tv, name)(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        score_thresh=THRESHOLD,
        # Theirs counts boxes that clipping left without area, ours never has such: so no limit.
        detections_per_img=MANY,
    ).eval()
    with torch.no_grad():
        if name.startswith("ssd"):
            ssd_parity.randomise(model, SIZES[name][0])
        else:
            retinanet_parity.randomise(model, torch.Generator().manual_seed(3))
            logits = model.head.classification_head.cls_logits
            logits.bias[::4] = -100  # the column of no class: never trained
    return model


def picture(name: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZES[name], 3), dtype=np.uint8)


def reference_of(model: nn.Module, pixels: np.ndarray) -> dict[str, Tensor]:
    with torch.inference_mode():
        (found,) = model([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
    return found


@pytest.mark.parametrize("name", list(SIZES))
def test_converted_weights_see_the_same(name: str, tmp_path: Path) -> None:
    theirs = build(name)
    source, output = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(theirs.state_dict(), source)
    assert main([name, str(source), "--classes", *NAMES, "--output", str(output)]) == 0
    source.unlink()
    trained = load_trained(output)
    assert trained.class_names == NAMES
    trained.model.head.score_threshold = THRESHOLD
    trained.model.head.max_detections = MANY
    (found,) = Predictor(trained.model, trained.transforms)([picture(name)])
    reference = reference_of(theirs, picture(name))
    sides = reference["boxes"][:, 2:] - reference["boxes"][:, :2]
    kept = (sides >= 1e-2).all(dim=1)  # torchvision keeps boxes that clipping left without area
    assert len(found) == kept.sum() > 0
    assert torch.equal(found.labels + 1, reference["labels"][kept])
    assert (found.boxes - reference["boxes"][kept]).abs().max() < 1e-3
    assert found.scores is not None
    assert (found.scores - reference["scores"][kept]).abs().max() < 1e-5
    output.unlink()


@pytest.mark.real_data
def test_yolox_with_and_without_batch_norm(
    yolox_onnx: Path,
    real_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    originals = sorted((real_data / "coco_tiny80" / "train2017").glob("*.jpg"))[:8]
    for original in originals:
        (images / original.name).symlink_to(original)
    folded, whole = tmp_path / "folded.safetensors", tmp_path / "whole.safetensors"
    argv = ["yolox_nano", str(yolox_onnx), "--output"]
    assert main([*argv, str(folded)]) == 0
    assert "convert with --images" in capsys.readouterr().out
    assert main([*argv, str(whole), "--images", str(images)]) == 0
    assert capsys.readouterr().out == f"{whole}: yolox_nano with 80 classes\n"

    pixels = np.random.default_rng(0).integers(0, 256, (320, 416, 3), dtype=np.uint8)
    first, second = (load_trained(path) for path in (folded, whole))
    assert [c["id"] for c in first.categories][-1] == 90
    (a,), (b,) = (Predictor(t.model, t.transforms)([pixels]) for t in (first, second))
    assert len(a) == len(b) > 0
    assert (a.boxes - b.boxes).abs().max() < 0.1
    with pytest.raises(CheckpointError, match="convert it again, with --images"):
        load_initial(yolox_nano(3), InitConfig(weights=folded, heads=False), NAMES)
    load_initial(yolox_nano(3), InitConfig(weights=whole, heads=False), NAMES)


@pytest.mark.real_data
def test_yolox_files_that_do_not_fit(
    yolox_onnx: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["--output", str(tmp_path / "o.safetensors")]
    refused(main, ["yolox_s", str(yolox_onnx), *output], capsys, "holds yolox_nano, not yolox_s")
    argv = ["yolox_nano", str(yolox_onnx), *output]
    refused(main, [*argv, "--classes", "a", "b"], capsys, "has 80 classes, --classes names 2")
    refused(main, [*argv, "--images", str(tmp_path)], capsys, f"no images in {tmp_path}")
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["yolox_nano", "--download"], "--download is for torchvision's models"),
        (["ssd300_vgg16", "a.pth", "--images", "b"], "--images is for YOLOX"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--output", "o"])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
