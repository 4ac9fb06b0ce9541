import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.data.formats import FormatError, labelme
from instseg.ops import rle

TRIANGLE = [[1, 1], [5, 1], [1, 4]]


def shape(label: str = "cat", points: object = None, **fields: object) -> dict:
    return {"label": label, "points": TRIANGLE if points is None else points, **fields}


def write(root: Path, name: str, *shapes: object, **fields: object) -> None:
    path = root / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"imagePath": f"{path.stem}.png", "imageHeight": 30, "imageWidth": 40}
    path.write_text(json.dumps({**content, "shapes": list(shapes), **fields}))


def test_polygons_rectangles_and_circles(tmp_path):
    write(
        tmp_path,
        "sub/a",
        shape("dog", shape_type="polygon", group_id=None),
        shape("cat", [[20, 12], [10, 6]], shape_type="rectangle"),
        shape("cat", [[15, 15], [15, 25]], shape_type="circle"),
    )
    coco = labelme.read(tmp_path)
    assert coco["images"] == [{"id": 1, "file_name": "sub/a.png", "height": 30, "width": 40}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    polygon, rectangle, circle = coco["annotations"]
    assert polygon == {
        "id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0,
        "bbox": [1, 1, 4, 3], "area": 6, "segmentation": [[1, 1, 5, 1, 1, 4]],
    }  # fmt: skip
    assert rectangle["bbox"] == [10, 6, 10, 6]
    assert rectangle["area"] == 60
    assert rectangle["segmentation"] == [[10, 6, 20, 6, 20, 12, 10, 12]]
    assert circle["bbox"] == pytest.approx([5, 5, 20, 20], abs=0.1)
    assert circle["area"] == pytest.approx(np.pi * 100, rel=0.02)
    (points,) = circle["segmentation"]
    mask = rle.decode(rle.from_polygons([np.asarray(points).reshape(-1, 2)], (30, 40)))
    ys, xs = np.mgrid[:30, :40] + 0.5
    disc = np.hypot(xs - 15, ys - 15) < 10
    assert (mask.astype(bool) ^ disc).sum() < 0.1 * disc.sum()


def test_group_id_joins_polygons_of_one_label(tmp_path):
    far = [[20, 20], [24, 20], [20, 23]]
    write(
        tmp_path,
        "a",
        shape("cat", group_id=3),
        shape("dog", group_id=3),
        shape("cat", group_id=4),
        shape("cat", far, group_id=3),
        shape("cat"),
        shape("cat"),
    )
    coco = labelme.read(tmp_path)
    assert [(a["category_id"], len(a["segmentation"])) for a in coco["annotations"]] == [
        (1, 2),
        (2, 1),
        (1, 1),
        (1, 1),
        (1, 1),
    ]
    joined = coco["annotations"][0]
    assert joined["bbox"] == [1, 1, 23, 22]
    assert joined["area"] == 12


def test_files_in_order_images_without_shapes_and_given_categories(tmp_path):
    write(tmp_path, "b")
    write(tmp_path, "a", shape("cat"))
    coco = labelme.read(tmp_path, categories=["dog", "cat"])
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "b.png"]
    assert [(a["image_id"], a["category_id"]) for a in coco["annotations"]] == [(1, 2)]
    with pytest.raises(FormatError, match=r"a\.json: shapes\[0\]: class 'cat' is not among"):
        labelme.read(tmp_path, categories=["dog"])


def test_the_image_gives_the_size_where_the_file_does_not(tmp_path):
    write(tmp_path, "a", imageHeight=None, imageWidth=None)
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((7, 9, 3), np.uint8))
    image = labelme.read(tmp_path)["images"][0]
    assert (image["height"], image["width"]) == (7, 9)


def test_image_path_is_relative_to_the_json_and_stays_under_the_folder(tmp_path):
    write(tmp_path, "set/notes/a", shape(), imagePath="..\\pictures\\a.png")
    assert labelme.read(tmp_path / "set")["images"][0]["file_name"] == "pictures/a.png"
    with pytest.raises(FormatError, match=r"a\.json: the path .* does not stay under"):
        labelme.read(tmp_path / "set" / "notes")
    write(tmp_path, "set/notes/a", shape(), imagePath="/etc/passwd")
    with pytest.raises(FormatError, match="does not stay under"):
        labelme.read(tmp_path)


def test_other_shapes_are_refused_or_left_out_on_request(tmp_path):
    write(
        tmp_path,
        "a",
        shape(),
        shape(points=[[1, 1]], shape_type="point"),
        shape(points=[[1, 1], [2, 2]], shape_type="line"),
    )
    with pytest.raises(FormatError, match=r"shapes\[1\]: shape type 'point'.*--skip-shapes point"):
        labelme.read(tmp_path)
    with pytest.raises(FormatError, match=r"shapes\[2\]: shape type 'line'"):
        labelme.read(tmp_path, skip_shapes=["point"])
    assert len(labelme.read(tmp_path, skip_shapes=["point", "line"])["annotations"]) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape(points=[[1, 1], [2, 2]]), "three"),
        (shape(points=[[1, 1], [2, 2], [3]]), r"list of \[x, y\]"),
        (shape(points="1,1"), r"list of \[x, y\]"),
        (shape(points=[[1, 1], [2, None], [3, 3]]), "None is not a number"),
        (shape(points=[[1, 1]], shape_type="circle"), "a circle has its centre"),
        (shape(shape_type="rectangle"), "two opposite corners, got 3"),
        (shape(group_id=[1]), "'group_id' must be a number"),
        ({"points": TRIANGLE}, "with a 'label'"),
        (shape(label=None), "with a 'label'"),
        ("cat", "with a 'label'"),
        (shape(shape_type=["polygon"]), "shape type"),
    ],
)
def test_broken_shapes_are_named(tmp_path, broken, message):
    write(tmp_path, "a", shape(), broken)
    with pytest.raises(FormatError, match=rf"a\.json: shapes\[1\]: .*{message}"):
        labelme.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "not a LabelMe file"),
        ([], "not a LabelMe file"),
        ({"shapes": []}, "'imagePath' is missing"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=rf"a\.json: {message}"):
        labelme.read(tmp_path)


def test_an_image_described_twice_is_refused(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", imagePath="./a.png")
    with pytest.raises(FormatError, match=r"b\.json: image 'a\.png' is described a second time"):
        labelme.read(tmp_path)
