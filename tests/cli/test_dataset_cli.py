import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from instseg.cli.dataset import main

ROOT = Path(__file__).resolve().parents[2]


def save_pairs(root: Path, count: int) -> tuple[str, str]:
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 3:13] = 1
    labels[10:18, 15:25] = 2
    for i in range(count):
        assert cv2.imwrite(str(root / "images" / f"{i}.png"), np.zeros((20, 30, 3), np.uint8))
        assert cv2.imwrite(str(root / "masks" / f"{i}.png"), labels)
    return str(root / "images"), str(root / "masks")


def test_convert_a_fold_then_check_it(tmp_path, capsys):
    images, masks = save_pairs(tmp_path, 7)
    output = tmp_path / "train.json"
    fold = ["--folds", "3", "--fold", "1", "--part", "train"]
    argv = ["convert", "instance-png", images, masks, "--category", "cell", *fold]
    assert main([*argv, "--output", str(output)]) == 0
    assert "5 images, 10 objects, classes: cell" in capsys.readouterr().out
    coco = json.loads(output.read_text())
    assert [i["file_name"] for i in coco["images"]] == [f"{i}.png" for i in (0, 2, 3, 5, 6)]
    assert main(["check", str(output), "--images", images]) == 0


def test_check_reports_a_box_without_area_and_exits_1(tmp_path, capsys):
    image_folder, label_folder = tmp_path / "images", tmp_path / "labels"
    image_folder.mkdir()
    label_folder.mkdir()
    assert cv2.imwrite(str(image_folder / "a.png"), np.zeros((20, 30, 3), np.uint8))
    (label_folder / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0 0\n")
    output, report = tmp_path / "out.json", tmp_path / "report.json"
    argv = ["convert", "yolo", str(image_folder), str(label_folder), "--names", "cat", "dog"]
    assert main([*argv, "--output", str(output)]) == 0
    capsys.readouterr()
    argv = ["check", str(output), "--images", str(image_folder), "--json", str(report)]
    assert main(argv) == 1
    assert "box-no-area" in capsys.readouterr().out
    (error,) = [d for d in json.loads(report.read_text()) if d["severity"] == "error"]
    assert error["code"] == "box-no-area"
    assert (error["image_id"], error["annotation_id"]) == (1, 2)
    assert error["file"].endswith("out.json")


def test_every_format_is_reachable(tmp_path):
    images = tmp_path / "JPEGImages"
    images.mkdir()
    (tmp_path / "Annotations").mkdir()
    assert cv2.imwrite(str(images / "a.png"), np.zeros((20, 30, 3), np.uint8))
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    objects = "".join(
        f"<object><name>cat</name><difficult>{d}</difficult><bndbox>{corners}</bndbox></object>"
        for d in (0, 1)
    )
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    shapes = [
        {"label": "cat", "points": [[1, 1], [5, 1], [1, 4]]},
        {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
    ]
    labelme = tmp_path / "labelme"
    labelme.mkdir()
    content = {"imagePath": "a.png", "imageHeight": 20, "imageWidth": 30, "shapes": shapes}
    (labelme / "a.json").write_text(json.dumps(content))
    polygon = {"name": "polygon", "all_points_x": [1, 5, 1], "all_points_y": [1, 1, 4]}
    region = {"shape_attributes": polygon, "region_attributes": {"kind": "cat"}}
    via = tmp_path / "via.json"
    via.write_text(json.dumps({"a": {"filename": "a.png", "regions": [region]}}))
    calls = [
        ["voc", str(tmp_path), "--drop-difficult", "--categories", "dog", "cat"],
        ["yolo", str(images), str(tmp_path), "--names", str(tmp_path / "data.yaml")],
        ["labelme", str(labelme), "--skip-shapes", "point", "line"],
        ["via", str(via), str(images), "--attribute", "kind"],
        ["via", str(via), str(images), "--category", "thing"],
    ]
    found = []
    for call in calls:
        output = tmp_path / "out.json.written"
        assert main(["convert", *call, "--output", str(output)]) == 0
        coco = json.loads(output.read_text())
        category = {c["id"]: c["name"] for c in coco["categories"]}
        found.append([category[a["category_id"]] for a in coco["annotations"]])
    assert found == [["cat"], ["cat"], ["cat"], ["cat"], ["thing"]]


# --- semantic masks ------------------------------------------------------------------------------


def save_semantic(root: Path, labels: np.ndarray, suffix: str = "") -> list[str]:
    """An image ``a.png`` and its mask of gray values or colours; the start of the command."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.fromarray(np.zeros(labels.shape[:2], np.uint8)).save(root / "images" / "a.png")
    Image.fromarray(labels).save(root / "masks" / f"a{suffix}.png")
    folders = [str(root / "images"), str(root / "masks")]
    return ["convert", "semantic-png", *folders, "--output", str(root / "out.json")]


def areas(root: Path) -> list[tuple[str, int, int]]:
    """(class, is crowd, pixels) of each annotation."""
    coco = json.loads((root / "out.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    return [(names[a["category_id"]], a["iscrowd"], a["area"]) for a in coco["annotations"]]


def test_semantic_masks_say_what_their_values_were_taken_for(tmp_path, capsys):
    labels = np.zeros((8, 10), np.uint8)
    labels[2:4, 3:8] = 255
    argv = save_semantic(tmp_path, labels, "_mask")
    assert main([*argv, "--mask-suffix", "_mask", "--category", "cell"]) == 0
    assert areas(tmp_path) == [("cell", 0, 10)]
    told = capsys.readouterr()
    assert "1 images, 1 objects, classes: cell" in told.out
    log = "".join(told.err.split())  # lines are wrapped
    assert "themasksholdthevalues{0,255}:readas0=background,255=cell" in log


def test_semantic_values_and_colours_on_the_command_line(tmp_path, capsys):
    labels = np.array([[0, 1, 1, 9], [2, 2, 2, 0]], np.uint8)
    argv = [*save_semantic(tmp_path, labels), "--classes", "road=1", "a=b=2", "--ignore", "9"]
    assert main(argv) == 0
    assert areas(tmp_path) == [("road", 0, 2), ("a=b", 0, 3), ("road", 1, 1)]
    assert main([*argv[:-2], "--background", "9"]) == 2  # then 0 means nothing
    assert "holds values without meaning: 0 (2 pixels)" in capsys.readouterr().err
    colours = np.array([[[0, 0, 0], [128, 64, 0]], [[128, 64, 0], [1, 2, 3]]], np.uint8)
    argv = [*save_semantic(tmp_path, colours), "--classes", "road=128,64,0", "--ignore", "1,2,3"]
    assert main(argv) == 0
    assert areas(tmp_path) == [("road", 0, 2), ("road", 1, 1)]


def test_a_stack_is_converted_and_its_pages_are_checked(tmp_path, capsys):
    labels = np.zeros((3, 20, 24), np.uint8)
    labels[:, 4:12, 6:15] = 1
    pixels = np.random.default_rng(0).integers(0, 65536, labels.shape).astype(np.uint16)
    (tmp_path / "images").mkdir()
    stack, masks = tmp_path / "images" / "stack.tif", tmp_path / "masks.tif"
    tifffile.imwrite(stack, pixels, photometric="minisblack")
    tifffile.imwrite(masks, labels, photometric="minisblack")
    output = str(tmp_path / "out.json")
    assert main(["convert", "semantic-png", str(stack), str(masks), "--output", output]) == 0
    names = [i["file_name"] for i in json.loads(Path(output).read_text())["images"]]
    assert names == [f"stack.tif#page={i}" for i in range(3)]
    argv = ["check", output, "--images", str(tmp_path / "images")]
    assert main([*argv, "--channels", "1", "--bits", "16"]) == 0
    assert "image-unreferenced" not in capsys.readouterr().out
    assert main([*argv, "--channels", "2"]) == 1
    assert "image-unreadable (3)" in capsys.readouterr().out
    assert main([*argv, "--channels", "0"]) == 2
    assert "channels must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "cell=7"], "holds values without meaning: 1 (4 pixels)"),
        (["--classes", "cell=0"], "holds values without meaning: 1 (4 pixels)"),
        (["--classes", "a=1", "b=1"], "classes['b'] and classes['a'] have one value, 1"),
        (["--classes", "a=1", "a=2"], "--classes must name each class once, got a, a"),
        (["--classes", "a=1", "b=1,2,3"], "give values or colours [r, g, b], not both"),
        (["--classes", "a=1", "--ignore", "-1"], "ignore must be a value from 0 or a colour"),
        (["--classes", "a=300,0,0"], "must be a value from 0 or a colour [r, g, b] of 0..255"),
    ],
)
def test_semantic_values_that_cannot_be(tmp_path, capsys, options, message):
    argv = save_semantic(tmp_path, np.array([[0, 1, 1], [0, 1, 1]], np.uint8))
    assert main([*argv, *options]) == 2
    printed = capsys.readouterr().err
    assert "error:" in printed
    assert message in printed
    assert not (tmp_path / "out.json").exists()


# --- anchors -------------------------------------------------------------------------------------


def boxes_file(folder: Path, *sides: tuple[float, float], crowd: bool = False) -> str:
    """A COCO file of one image of height 100 and width 200 with boxes of these widths, heights."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, *side], "iscrowd": int(crowd)}
        for i, side in enumerate(sides, 1)
    ]
    image = {"id": 1, "file_name": "absent.jpg", "height": 100, "width": 200}
    coco = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": annotations}
    path = folder / "boxes.json"
    path.write_text(json.dumps(coco))
    return str(path)


def test_anchors_to_paste(tmp_path, capsys):
    path = boxes_file(tmp_path, (20, 6), (24, 6), (5, 20), (5, 24))
    argv = ["anchors", "--annotations", path, "--number", "2"]
    assert main([*argv, "--letterbox", "400", "400"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "2 anchors of 4 boxes, images fitted in 400 x 400" in told[0]
    assert told[0].endswith("mean best IoU 0.9129")  # (20 / 22 + 22 / 24) / 2, at any scale
    assert told[-1] == "anchors: [[10.0, 44.0], [44.0, 12.0]]"
    assert main([*argv, "--resize", "400", "200"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "images stretched to 400 x 200" in told[0]
    assert told[-1] == "anchors: [[5.0, 88.0], [22.0, 24.0]]"


def test_anchors_that_cannot_be(tmp_path, capsys):
    path = boxes_file(tmp_path, (20, 5), (24, 5))
    argv = ["anchors", "--annotations", path, "--letterbox", "40", "40", "--number"]
    assert main([*argv, "3"]) == 2
    assert "k must be in 1..2, the number of different box sizes" in capsys.readouterr().err
    assert main(["anchors", "--annotations", path, "--resize", "0", "4", "--number", "1"]) == 2
    assert "height and width must be at least 1, got 0 4" in capsys.readouterr().err
    boxes_file(tmp_path, (20, 5), crowd=True)
    assert main([*argv, "1"]) == 2
    assert "boxes.json: there is no box to cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["convert", "voc", "{tmp}", "--output", "{tmp}/o.json"], "JPEGImages: no such folder"),
        (["convert", "voc", "{tmp}", "--output", "{tmp}/absent/o.json"], "no folder"),
        (["convert", "voc", "{tmp}", "--output", "{tmp}/o.json", "--folds", "5"], "give all three"),
        (
            ["convert", "labelme", "{tmp}", "--output", "{tmp}/o.json"],
            "no file in it ends in .json",
        ),
        (
            ["convert", "via", "{tmp}/x.json", "{tmp}", "--category", "a", "--output", "{tmp}/o"],
            "x.json",
        ),
        (["check", "{tmp}/absent.json", "--images", "{tmp}"], "absent.json"),
        (
            ["anchors", "--annotations", "{tmp}/absent", "--letterbox", "9", "9", "--number", "2"],
            "absent: there is no such annotation file",
        ),
    ],
)
def test_unusable_files_exit_2_with_one_line(tmp_path, capsys, argv, message):
    assert main([part.replace("{tmp}", str(tmp_path)) for part in argv]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "error:" in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_impossible_folds_exit_2(tmp_path, capsys):
    images, masks = save_pairs(tmp_path, 2)
    argv = ["convert", "instance-png", images, masks, "--output", str(tmp_path / "o.json")]
    assert main([*argv, "--folds", "5", "--fold", "5", "--part", "val"]) == 2
    assert "0 <= index < folds, got 5 and 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["convert"],
        ["convert", "kitti"],
        ["convert", "yolo", "a", "b", "--output", "o"],
        ["convert", "via", "a", "b", "--output", "o"],
        ["convert", "via", "a", "b", "--output", "o", "--attribute", "x", "--category", "y"],
        ["convert", "semantic-png", "a", "b", "--output", "o", "--classes", "cell"],
        ["convert", "semantic-png", "a", "b", "--output", "o", "--classes", "=1"],
        ["convert", "semantic-png", "a", "b", "--output", "o", "--classes", "cell=1,2"],
        ["convert", "semantic-png", "a", "b", "--output", "o", "--ignore", "white"],
        ["check", "a.json"],
        ["check", "a.json", "--images", "b", "--bits", "12"],
        ["anchors", "--annotations", "a", "--number", "3"],
        ["anchors", "--annotations", "a", "--number", "3", "--letterbox", "9"],
        ["anchors", "--annotations", "a", "--letterbox", "9", "9"],
    ],
)
def test_unusable_arguments_exit_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_script_runs_and_its_help_has_examples():
    script = [sys.executable, str(ROOT / "tools" / "dataset.py"), "--help"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, capture_output=True, text=True, env=env, check=True)
    assert "convert instance-png images/ masks/" in done.stdout


@pytest.mark.real_data
def test_bccd_through_convert_and_check(real_data, tmp_path, capsys):
    output, report = tmp_path / "bccd.json", tmp_path / "report.json"
    root = real_data / "bccd"
    assert main(["convert", "voc", str(root), "--output", str(output)]) == 0
    assert "364 images, 4888 objects, classes: Platelets, RBC, WBC" in capsys.readouterr().out
    argv = ["check", str(output), "--images", str(root / "JPEGImages"), "--json", str(report)]
    assert main(argv) == 1
    errors = [d for d in json.loads(report.read_text()) if d["severity"] == "error"]
    assert [d["code"] for d in errors] == ["box-no-area"] * 2
