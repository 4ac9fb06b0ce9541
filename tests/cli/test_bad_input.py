"""Whatever is wrong with a configuration, a data set or a result file is said in one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from instseg.cli import evaluate, train
from instseg.data.synthetic import CLASSES

from .tiny import CONFIG, STEPS, line_of, refused, rows, write_config

ANCHORS = "[[8], [16], [32], [48], [64]]"
BACKBONE = "{name: timm, model: test_resnet, norm: live}"


def arguments(config: Path, tmp_path: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--output", str(tmp_path / "run"), *more]


# --- the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("neck: ", "nekc: ", ["unknown key 'nekc' in model; did you mean 'neck'?"]),
        ("clip_norm", "clip_nrom", ["unknown key 'clip_nrom' in train; did you mean 'clip_norm'?"]),
        ("ema_decay: 0.5", "lr: 0.5", ["unknown key 'lr' in train", "exists in", "optimizer"]),
        ("epochs: 6", "epochs: six", ["train.epochs: expected an integer, got 'six'"]),
        ("epochs: 6", "epochs: 0", ["train.epochs: should be greater than 0, got 0"]),
        ("workers: 0", "workers: true", ["data.workers: expected an integer, got true"]),
        ("lr: 2.0e-3", "lr: .inf", ["train.optimizer", "lr", "finite"]),
        ("name: mask_rcnn", "name: mask_rcn", ["model.name", "did you mean 'mask_rcnn'?"]),
        ("p: 0.5", "p: 1.5", ["data.copy_paste.p: should be less than or equal to 1, got 1.5"]),
        (BACKBONE, "{name: resnet, depth: 18}", ["model.backbone", "set weights, or norm: live"]),
        (BACKBONE, "{name: resnet, depth: 20}", ["model.backbone", "depth", "18, 34, 50 or 101"]),
    ],
)
def test_the_line_of_a_mistake_is_named(
    tmp_path: Path,
    shapes: Path,
    old: str,
    new: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, shapes, (old, new))
    message = refused(train.main, arguments(config, tmp_path), capsys, *words)
    assert message.startswith(f"{line_of(config, new)}: ")
    assert not (tmp_path / "run").exists()


def test_a_bracket_that_is_not_closed(
    tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, shapes, ("channels: 16}", "channels: 16"))
    message = refused(train.main, arguments(config, tmp_path), capsys, "expected")
    assert message.startswith(f"{line_of(config, '  anchors:')}")


def test_all_mistakes_are_told_at_once(
    tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path,
        shapes,
        ("  epochs: 6\n", ""),
        ("neck:", "nekc:"),
        ("log_every: 1", "log_every: often"),
    )
    message = refused(train.main, arguments(config, tmp_path, "data.worker=3"), capsys)
    assert message.count("\n") == 4
    assert "missing key 'epochs' in train" in message
    assert f"{line_of(config, 'nekc')}: unknown key 'nekc'" in message
    assert "train.log_every: expected an integer, got 'often'" in message
    assert "command line: 'data.worker=3': unknown key 'worker' in data; did you mean" in message


@pytest.mark.parametrize(
    ("changes", "override", "words"),
    [
        ([], "train.epochs", ["command line: 'train.epochs': expected key.path=value"]),
        ([], "train.epochs=x", ["command line", "train.epochs: expected an integer, got 'x'"]),
        ([], "data.train_transforms.7.p=1", ["data.train_transforms", "an index from 0 to 1"]),
        (
            [(ANCHORS, "[[8], [16]]")],
            "",
            ["model.anchors.sizes has 2 levels, but the neck gives 5 (strides 4, 8, 16, 32, 64)"],
        ),
        (
            [(ANCHORS, "[[8], [16, 20], [32], [48], [64]]")],
            "",
            ["model.anchors: every level of sizes needs the same number of sizes"],
        ),
        (
            [],
            f"train.schedule.warmup_steps={STEPS}",
            [f"train.schedule.warmup_steps is {STEPS}", f"only {STEPS} updates"],
        ),
        (
            [],
            "train.schedule={name: multi_step, warmup_steps: 1, milestones: [0.5, 0.51]}",
            ["train.schedule.milestones [0.5, 0.51]", "(12, 12)"],
        ),
        ([], "model.backbone.model=test_resnt", ["model.backbone: timm has no model 'test_resnt'"]),
        ([], "train.best_metric=segm/ap", ["train.best_metric 'segm/ap'", "segm/AP,"]),
        ([], "train.device=abacus", ["train.device: ", "abacus"]),
        ([], "train.device=cuda:99", ["train.device is 'cuda:99': torch sees"]),
        ([], "model.image_mean=[0.5]", ["model.image_mean", "need a value for each"]),
        (
            [],
            "data.targets={border_width: 3}",
            ["data.targets says how objects become class maps", "not mask_rcnn"],
        ),
        (
            [
                ("mask_rcnn", "faster_rcnn"),
                ("  mask_head: {name: fcn, channels: [16]}\n", ""),
            ],
            "",
            ["data.copy_paste", "a model that has masks"],
        ),
        (
            [
                ("mask_rcnn", "faster_rcnn"),
                ("  mask_head: {name: fcn, channels: [16]}\n", ""),
                ("  copy_paste: {p: 0.5}\n", ""),
            ],
            "evaluation.iou_types=[segm]",
            ["evaluation.iou_types asks for segm, but the model predicts no masks"],
        ),
    ],
)
def test_settings_that_do_not_agree(
    tmp_path: Path,
    shapes: Path,
    changes: list[tuple[str, str]],
    override: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, shapes, *changes)
    overrides = [override] if override else []
    refused(train.main, arguments(config, tmp_path, *overrides), capsys, *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train.annotations=FOLDER/no.json", ["FOLDER/no.json: there is no such annotation"]),
        ("data.val.annotations=FOLDER/no.json", ["FOLDER/no.json: there is no such annotation"]),
        ("data.train.images=FOLDER/no", ["FOLDER/no: there is no such image folder"]),
        ("train.init_from.weights=FOLDER/no.safetensors", ["FOLDER/no.safetensors: no such file"]),
        ("model.backbone.weights=FOLDER/no.pth", ["FOLDER/no.pth: no such file"]),
    ],
)
def test_missing_files(
    config: Path,
    tmp_path: Path,
    override: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    override = override.replace("FOLDER", str(tmp_path))
    wanted = [word.replace("FOLDER", str(tmp_path)) for word in words]
    refused(train.main, arguments(config, tmp_path, override), capsys, *wanted)


def test_missing_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "no.yaml"
    refused(train.main, arguments(config, tmp_path), capsys, str(config))
    argv = ["--config", str(config), "--weights", "w.safetensors"]
    refused(evaluate.main, argv, capsys, str(config))


# --- the data -----------------------------------------------------------------------------------


@pytest.fixture
def copy(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be spoilt."""
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def spoil(path: Path, **sections: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"images": []}, ["no image can be used"]),
        ({"categories": []}, ["no category can be used"]),
        ({"images": {}}, ["'images' must be a list"]),
        ({"annotations": []}, ["data.train has no object to learn from", "8 images"]),
    ],
)
def test_empty_data_set(
    copy: Path,
    tmp_path: Path,
    sections: dict[str, Any],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy / "train" / "annotations.json", **sections)
    refused(train.main, arguments(write_config(tmp_path, copy), tmp_path), capsys, *words)


def test_annotations_cut_short(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "train" / "annotations.json"
    path.write_text(path.read_text()[:2000])
    argv = arguments(write_config(tmp_path, copy), tmp_path)
    refused(train.main, argv, capsys, f"{path}: not valid JSON at line 1, column", "cut short?")


def test_defects_are_left_out_and_told(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "train" / "annotations.json"
    coco = json.loads(path.read_text())
    images, annotations = coco["images"], coco["annotations"]
    first = annotations[0]
    total = len(annotations)
    changes: dict[str, dict[str, Any]] = {
        "box-no-area": {"bbox": [5, 5, 0, 10]},
        "box-outside": {"bbox": [200, 5, 10, 10]},
        "unknown-category": {"category_id": 77},
        "unknown-image": {"image_id": 88},
        "mask-malformed": {"segmentation": {"size": [3, 3], "counts": [9]}},
        "mask-missing": {"segmentation": []},
    }
    for i, change in enumerate(changes.values()):
        annotations.append(first | change | {"id": 900 + i})
    annotations.append(first | {"bbox": [1, 1, 5, 5]})
    images.append({"id": 70, "file_name": "gone.png", "height": 64, "width": 64})
    images.append({"id": 71, "file_name": "../../secret.png", "height": 64, "width": 64})
    path.write_text(json.dumps(coco))

    argv = arguments(
        write_config(tmp_path, copy), tmp_path, "train.epochs=1", "data.val_batch_size=6"
    )
    words = "data.train: left out 7 of", "data.on_defect is raise: mend them"
    refused(train.main, [*argv, "data.on_defect=raise"], capsys, *words)
    assert train.main(argv) == 0
    log = capsys.readouterr().err
    (line,) = [text for text in log.splitlines() if "left out" in text and "none left" not in text]
    assert "WARNING" in line
    assert str(path) in line
    assert f"left out 7 of {total + 7} annotations and 2 of 10 images" in line
    for i, code in enumerate(changes):
        assert f"{code} (annotation {900 + i})" in line
    assert f"duplicate-annotation-id (annotation {first['id']})" in line
    assert "image-missing (image 70)" in line
    assert "path-leaves-root (image 71)" in line
    assert "8 training images, 6 validation images" in log


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_training(
    copy: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is named, and the training can go on without it."""
    broken = copy / "train" / "images" / "000004.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    argv = arguments(write_config(tmp_path, copy), tmp_path, f"data.workers={workers}")
    refused(train.main, [*argv, "train.save_every=1"], capfd, f"{broken}: ")
    done = [row["step"] for row in rows(tmp_path / "run", "train")]
    assert len(done) < STEPS / 6

    assert train.main([*argv, "train.save_every=1", "data.on_error=skip", "--resume"]) == 0
    log = capfd.readouterr().err
    assert log.count(f"skipping an image: {broken}: ") == 1
    steps = [row["step"] for row in rows(tmp_path / "run", "train")]
    assert steps == list(range(1, STEPS + 1))


def test_a_corrupt_validation_image(
    copy: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copy / "val" / "images" / "000002.png"
    broken.write_bytes(b"no picture")
    config = write_config(tmp_path, copy)
    argv = ["--config", str(config), "--weights", str(trained / "final.safetensors")]
    refused(evaluate.main, argv, capsys, f"{broken}: ")
    assert evaluate.main([*argv, "data.on_error=skip"]) == 0
    captured = capsys.readouterr()
    assert f"skipping an image: {broken}: " in captured.err
    assert "detections in 6 images" in captured.out  # its objects count as missed


def test_an_image_of_another_size_than_annotated(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "train" / "annotations.json"
    coco = json.loads(path.read_text())
    coco["images"][3]["width"] = 80
    path.write_text(json.dumps(coco))
    argv = arguments(write_config(tmp_path, copy), tmp_path)
    image = copy / "train" / "images" / "000003.png"
    refused(train.main, argv, capsys, f"{image}: height x width is 64x64", "64x80", "image id 4")


def test_classes_missing_in_the_validation_data(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "val" / "annotations.json"
    spoil(path, categories=json.loads(path.read_text())["categories"][1:])
    argv = arguments(write_config(tmp_path, copy), tmp_path)
    words = f"classes {CLASSES[0]} are not in the validation data, whose classes are {CLASSES[1]},"
    refused(train.main, argv, capsys, words)


# --- divergence ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = ["train.optimizer={name: sgd, lr: 1e9}", "train.clip_norm=null"]
    boxes = tmp_path / "run" / "black_box"
    argv = arguments(config, tmp_path, *override)
    message = refused(train.main, argv, capsys, str(boxes), "Lower the learning rate")
    (folder,) = boxes.iterdir()
    content = json.loads((folder / "report.json").read_text())
    assert message.startswith(f"step {content['step']} (epoch 1, lr {content['lr']:g}): ")
    (batch,) = content["batches"]
    assert len(batch["image_ids"]) == len(batch["paths"]) == 2
    assert all(Path(path).is_file() for path in batch["paths"])
    values = [*batch["losses"].values(), content["grad_norm"]]
    assert any(value in ("nan", "inf", "-inf") for value in values)
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == list(
        range(1, content["step"])
    )


def test_the_tiny_configuration_has_no_mistake() -> None:
    """Else the tests above would see its errors and not their own."""
    assert CONFIG.count(ANCHORS) == CONFIG.count(BACKBONE) == 1
