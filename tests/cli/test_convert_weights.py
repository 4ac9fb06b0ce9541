"""A torchvision state dict, converted to a file, loads as a model with torchvision's outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models.detection as tv
from torch import Tensor, nn

from instseg.cli.convert_weights import main
from instseg.config.trained import TrainedModel, load_trained
from instseg.engine.weights import load_weights
from instseg.inference.predictor import Predictor
from instseg.models.detection.rpn import ProposalLimits
from instseg.ops import instance_rles, rle
from instseg.structures import Instances
from tests.models.test_torchvision_parity import randomise

from .tiny import refused

SIZE = (32, 1333)
"""An image that torchvision, and so the converted file, does not resize. Its height is a multiple
of 32: torchvision works out the levels' scales from the first image that it sees, and gets them
wrong where that one is mostly padding."""
PROPOSALS = 150
"""Kept after NMS, for speed; torchvision's own number is 1000."""

NAMES = ["cat", "dog", "bird"]


@pytest.fixture(autouse=True)
def _small_disk(tmp_path: Path) -> Iterator[None]:
    """Files of 180 MB are not kept after a test."""
    yield
    for path in tmp_path.iterdir():
        path.unlink()


def build(name: str, num_classes: int) -> nn.Module:
    """Torchvision's model with random weights; ``num_classes`` counts the background."""
    torch.manual_seed(7)
    model = getattr(tv, name)(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        rpn_post_nms_top_n_test=PROPOSALS,
    )
    randomise(model, torch.Generator().manual_seed(3))
    return model.eval()


def detections(trained: TrainedModel, theirs: nn.Module) -> tuple[Instances, dict[str, Tensor]]:
    """Of both on one image."""
    trained.model.rpn.inference_limits = ProposalLimits(1000, PROPOSALS)
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    (found,) = Predictor(trained.model, trained.transforms)([picture])
    with torch.inference_mode():
        (reference,) = theirs([torch.from_numpy(picture).permute(2, 0, 1) / 255])
    return found, reference


def assert_same(found: Instances, reference: dict[str, Tensor], ids: list[int]) -> None:
    assert len(found) == len(reference["boxes"]) > 0
    assert [ids[label] for label in found.labels] == reference["labels"].tolist()
    assert (found.boxes - reference["boxes"]).abs().max() < 1e-3
    assert found.scores is not None
    assert (found.scores - reference["scores"]).abs().max() < 1e-5
    if "masks" in reference:
        pasted = np.stack([rle.decode(code) for code in instance_rles(found)])
        assert (pasted != (reference["masks"][:, 0] > 0.5).numpy()).mean() < 1e-4


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn"])
def test_converted_weights_see_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = build(name, num_classes=4)
    source, output = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(theirs.state_dict(), source)
    assert main([name, str(source), "--classes", *NAMES, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: {name} with 3 classes\n"
    trained = load_trained(output)
    assert trained.categories == [{"id": i, "name": n} for i, n in enumerate(NAMES, 1)]
    assert_same(*detections(trained, theirs), ids=[1, 2, 3])


def test_cocos_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """91 classes become the 80 that COCO has, under COCO's ids; a frozen epsilon is moved."""
    name = "maskrcnn_resnet50_fpn"
    theirs = build(name, num_classes=91)
    # Classes without a name are never found.
    coco = tv.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    unused = [i for i, text in enumerate(coco) if text == "N/A"]
    with torch.no_grad():
        predictor = theirs.roi_heads.box_predictor.cls_score
        predictor.weight[unused], predictor.bias[unused] = 0, -100
        predictor.weight *= 4
        for module in theirs.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
                module.running_var *= 1e-4  # so small that an epsilon of 1e-5 would show
                module.weight *= 1e-2
    source, output = tmp_path / "coco.pth", tmp_path / "ours.safetensors"
    torch.save({"model": theirs.state_dict()}, source)
    assert main([name, str(source), "--frozen-eps", "0", "--output", str(output)]) == 0
    assert "with 80 classes" in capsys.readouterr().out

    trained = load_trained(output)
    assert len(trained.categories) == 80
    by_id = {c["id"]: c["name"] for c in trained.categories}
    assert {by_id[1], by_id[13], by_id[90]} == {"person", "stop sign", "toothbrush"}
    assert 12 not in by_id
    assert len(load_weights(output)[0]["mask_head.predictor.logits.bias"]) == 81
    assert_same(*detections(trained, theirs), ids=list(by_id))


# --- what is refused ----------------------------------------------------------------------------


def test_another_model_or_number_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "fasterrcnn_resnet50_fpn"
    state = build(name, num_classes=4).state_dict()
    source = tmp_path / "theirs.pth"
    torch.save(state, source)
    output = ["--output", str(tmp_path / "ours.safetensors")]
    argv = [name, str(source), *output]
    refused(main, argv, capsys, f"{source} has 3 classes: name them with --classes")
    words = f"{source} has 3 classes without background, --classes names 2"
    refused(main, [*argv, "--classes", "cat", "dog"], capsys, words)
    words = f"{source} does not fit the model: "
    other = ["maskrcnn_resnet50_fpn", *argv[1:], "--classes", *NAMES]
    refused(main, other, capsys, words, "mask_head.body.0.0.weight is missing in the file")
    other[0] = "fasterrcnn_resnet50_fpn_v2"
    refused(main, other, capsys, words, "neck.lateral.0.1.weight is missing in the file")

    weight = "rpn.head.cls_logits.weight"
    torch.save({key: value for key, value in state.items() if key != weight}, source)
    named = [*argv, "--classes", *NAMES]
    refused(main, named, capsys, words, "rpn.head.objectness.weight is missing in the file")
    torch.save(state | {weight: torch.zeros(3, 8, 1, 1)}, source)
    words = "rpn.head.objectness.weight is [3, 8, 1, 1] in the file and [3, 256, 1, 1] in the model"
    refused(main, named, capsys, words)
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"encoder.0.weight": torch.zeros(1)},
            "the key 'encoder.0.weight' is not of torchvision's",
        ),
        ({"rpn.head.cls_logits.bias": torch.zeros(3)}, "the class layers of fasterrcnn"),
        ({"roi_heads.box_predictor.cls_score.bias": torch.zeros(1)}, "no class beside"),
        ({"roi_heads.box_predictor.cls_score.bias": torch.tensor(1.0)}, "no class beside"),
        ({"roi_heads.box_predictor.cls_score.bias": torch.zeros(3)}, "does not fit the model"),
        ({"epoch": 3}, "found a dict with the keys 'epoch'"),
    ],
)
def test_files_of_something_else(
    tmp_path: Path,
    content: dict[str, object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "theirs.pth"
    torch.save(content, source)
    argv = ["fasterrcnn_resnet50_fpn", str(source), "--output", str(tmp_path / "o.safetensors")]
    refused(main, argv, capsys, str(source), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet50", "a.pth", "--output", "o"], "invalid choice: 'resnet50'"),
        (["fasterrcnn_resnet50_fpn", "--output", "o"], "give either a file or --download"),
        (["fasterrcnn_resnet50_fpn", "a", "--download", "--output", "o"], "either a file or"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_the_file_says_how_to_resize(tmp_path: Path) -> None:
    output = tmp_path / "ours.safetensors"
    source = tmp_path / "theirs.pth"
    torch.save(build("fasterrcnn_resnet50_fpn", num_classes=2).state_dict(), source)
    argv = ["fasterrcnn_resnet50_fpn", str(source), "--classes", "cat", "--output", str(output)]
    assert main(argv) == 0
    about = json.loads(load_weights(output)[1]["instseg"])
    assert about["categories"] == [{"id": 1, "name": "cat"}]
    image, _ = load_trained(output).transforms(
        torch.zeros(3, 100, 400, dtype=torch.uint8), Instances.empty((100, 400))
    )
    assert tuple(image.shape[1:]) == (333, 1333)
