from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.data.formats import FormatError, yolo


def write(root: Path, name: str, text: str | None, size: tuple[int, int] = (100, 200)) -> None:
    image, label = root / "images" / f"{name}.png", root / "labels" / f"{name}.txt"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(image), np.zeros((*size, 3), np.uint8))
    if text is not None:
        label.write_text(text)


def read(root: Path, names: list[str] | Path | None = None) -> dict:
    return yolo.read(root / "images", root / "labels", names=names or ["cat", "dog"])


def test_boxes_and_polygons_in_one_file(tmp_path):
    write(tmp_path, "sub/a", "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n")
    coco = read(tmp_path)
    assert coco["images"] == [{"id": 1, "file_name": "sub/a.png", "height": 100, "width": 200}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    box, polygon = coco["annotations"]
    # 0.25 of 200 and 0.5 of 100 are 50x50, around (100, 50).
    assert box == {
        "id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0,
        "bbox": [75, 25, 50, 50], "area": 2500,
    }  # fmt: skip
    assert polygon["category_id"] == 1
    assert polygon["segmentation"] == [pytest.approx([20, 20, 60, 20, 60, 60, 20, 60])]
    assert polygon["bbox"] == pytest.approx([20, 20, 40, 40])
    assert polygon["area"] == pytest.approx(1600)


def test_images_without_labels_have_no_objects(tmp_path):
    write(tmp_path, "a", None)
    write(tmp_path, "b", "")
    write(tmp_path, "c", "0 0.5 0.5 1 1")
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    coco = read(tmp_path)
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "b.png", "c.png"]
    assert [a["image_id"] for a in coco["annotations"]] == [3]


def test_a_label_file_without_image_is_named(tmp_path):
    write(tmp_path, "a", "")
    (tmp_path / "labels" / "ghost.txt").write_text("0 0.5 0.5 1 1")
    with pytest.raises(FormatError, match=r"1 label files without an image: ghost\.txt"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class '2' is not a number from 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class '-1'"),
        ("cat 0.5 0.5 0.1 0.1", "class 'cat'"),
        ("0 0.5 0.5 0.1", "got 3 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "got 5 numbers"),
        ("0 0.5 0.5 0.1 wide", "'wide' is not a number"),
        ("0 0.5 0.5 0.1 inf", "'inf' is not finite"),
        ("0 100 50 20 20", r"100 is not in 0\.\.1"),
        ("0 -0.2 0.5 0.2 0.2", r"-0\.2 is not in 0\.\.1"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    write(tmp_path, "a", f"0 0.5 0.5 1 1\n\n{line}\n")
    with pytest.raises(FormatError, match=rf"a\.txt: line 3: .*{message}"):
        read(tmp_path)


def test_names_come_from_a_list_or_a_map_in_yaml(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("path: .\nnames: [ant, 7]\n")
    assert yolo.read_names(file) == ["ant", "7"]
    file.write_text("names: {1: dog, 0: cat}\n")
    write(tmp_path, "a", "1 0.5 0.5 1 1")
    coco = read(tmp_path, file)
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert coco["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: {0: cat, 2: dog}", "must number 0 to 1"),
        ("names: {a: cat}", "must number 0 to 0"),
        ("names: [cat, cat]", "one class twice"),
        ("names: []", "must list the classes"),
        ("nc: 2", "must list the classes"),
        ("- cat", "must list the classes"),
        ("names: [cat", "not YAML"),
        ("names: !!python/object/apply:os.getcwd []", "must list the classes"),
    ],
)
def test_broken_names_are_refused(tmp_path, text, message):
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(FormatError, match=rf"data\.yaml: .*{message}"):
        yolo.read_names(file)
