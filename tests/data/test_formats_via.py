import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.data.formats import FormatError, via
from instseg.data.image_io import ImageError

POLYGON = {"name": "polygon", "all_points_x": [1, 5, 1], "all_points_y": [1, 1, 4]}


def region(shape: object = None, **attributes: object) -> dict:
    return {"shape_attributes": shape or POLYGON, "region_attributes": attributes}


def write(root: Path, project: bool = False, **images: object) -> Path:
    entries = {
        f"{name}.png123": {"filename": f"{name}.png", "size": 123, "regions": regions}
        for name, regions in images.items()
    }
    for name in images:
        assert cv2.imwrite(str(root / f"{name}.png"), np.zeros((30, 40, 3), np.uint8))
    content = {"_via_settings": {}, "_via_img_metadata": entries} if project else entries
    file = root / "via.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("project", [False, True])
def test_shapes_and_classes(tmp_path, project):
    file = write(
        tmp_path,
        project,
        b=[
            region(kind="dog"),
            region({"name": "rect", "x": 10, "y": 6, "width": 10, "height": 5}, kind="cat "),
            region({"name": "circle", "cx": 15, "cy": 15, "r": 10}, kind="cat"),
        ],
        a=[],
    )
    coco = via.read(file, tmp_path, attribute="kind")
    assert coco["images"] == [
        {"id": 1, "file_name": "a.png", "height": 30, "width": 40},
        {"id": 2, "file_name": "b.png", "height": 30, "width": 40},
    ]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    polygon, rect, circle = coco["annotations"]
    assert polygon == {
        "id": 1, "image_id": 2, "category_id": 2, "iscrowd": 0,
        "bbox": [1, 1, 4, 3], "area": 6, "segmentation": [[1, 1, 5, 1, 1, 4]],
    }  # fmt: skip
    assert (rect["bbox"], rect["area"], rect["category_id"]) == ([10, 6, 10, 5], 50, 1)
    assert circle["bbox"] == pytest.approx([5, 5, 20, 20], abs=0.1)


def test_an_ellipse_is_turned_clockwise_by_theta(tmp_path):
    ellipse = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 3}
    file = write(tmp_path, a=[region(ellipse), region({**ellipse, "theta": math.pi / 4})])
    flat, turned = via.read(file, tmp_path, category="cell")["annotations"]
    assert flat["bbox"] == pytest.approx([8, 12, 24, 6], abs=0.2)
    # Half the extent of a turned ellipse along either axis: sqrt(rx^2 cos^2 + ry^2 sin^2).
    half = math.sqrt((12**2 + 3**2) / 2)
    assert turned["bbox"] == pytest.approx([20 - half, 15 - half, 2 * half, 2 * half], abs=0.2)
    points = np.reshape(turned["segmentation"][0], (-1, 2))
    lowest = points[points[:, 1].argmax()]
    assert lowest[0] > 20  # y grows downwards: the right end is the low one


def test_regions_numbered_by_via_1(tmp_path):
    file = write(tmp_path, a={"0": region(), "1": region()})
    coco = via.read(file, tmp_path, category="balloon")
    assert len(coco["annotations"]) == 2
    assert coco["categories"] == [{"id": 1, "name": "balloon"}]


def test_given_categories_decide_ids(tmp_path):
    file = write(tmp_path, a=[region(kind="cat")])
    coco = via.read(file, tmp_path, attribute="kind", categories=["dog", "cat"])
    assert coco["annotations"][0]["category_id"] == 2
    with pytest.raises(FormatError, match=r"'a\.png': regions\[0\]: class 'cat' is not among"):
        via.read(file, tmp_path, attribute="kind", categories=["dog"])


@pytest.mark.parametrize("source", [{}, {"attribute": "kind", "category": "cat"}])
def test_class_from_exactly_one_source(tmp_path, source):
    with pytest.raises(ValueError, match="either the attribute"):
        via.read(write(tmp_path, a=[]), tmp_path, **source)


@pytest.mark.parametrize("kind", ["point", "polyline"])
def test_other_shapes_are_refused_or_left_out_on_request(tmp_path, kind):
    file = write(tmp_path, a=[region(), region({"name": kind, "cx": 1, "cy": 1})])
    with pytest.raises(FormatError, match=rf"regions\[1\]: shape type '{kind}'"):
        via.read(file, tmp_path, category="cat")
    coco = via.read(file, tmp_path, category="cat", skip_shapes=[kind])
    assert len(coco["annotations"]) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (region(colour="red"), r"attribute 'kind' holds no class but None.*\['colour'\]"),
        (region(kind={"cat": True}), "holds no class but {'cat': True}"),
        (region(kind=" "), "holds no class"),
        (region({"name": "circle", "cx": 1, "cy": 1}, kind="cat"), "r is missing"),
        (region({"name": "rect", "x": "a", "y": 1, "width": 1, "height": 1}, kind="cat"), "'a' is"),
        (region({**POLYGON, "all_points_x": [1, 2]}, kind="cat"), "2 values in all_points_x but 3"),
        (region({"name": "polygon"}, kind="cat"), "expected a list of numbers"),
        (
            region({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, kind="cat"),
            "three",
        ),
        ({"region_attributes": {}}, "must be a map with 'shape_attributes'"),
        ("cat", "must be a map with 'shape_attributes'"),
        (region({"name": ["rect"]}, kind="cat"), "shape type"),
    ],
)
def test_broken_regions_are_named(tmp_path, broken, message):
    file = write(tmp_path, a=[region(kind="cat"), broken])
    with pytest.raises(FormatError, match=rf"via\.json: image 'a\.png': regions\[1\]: .*{message}"):
        via.read(file, tmp_path, attribute="kind")


@pytest.mark.parametrize(
    "content", [[], {}, {"a": 1}, {"a": {"filename": "a.png"}}, {"images": [], "annotations": []}]
)
def test_other_json_is_refused(tmp_path, content):
    file = tmp_path / "via.json"
    file.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"via\.json: not a VIA 2 project"):
        via.read(file, tmp_path, category="cat")


def test_images_are_found_and_stay_under_their_root(tmp_path):
    file = write(tmp_path, a=[])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png"):
        via.read(file, tmp_path, category="cat")
    file.write_text(json.dumps({"a": {"filename": "../a.png", "regions": []}}))
    with pytest.raises(FormatError, match=r"image '\.\./a\.png': the path .* does not stay under"):
        via.read(file, tmp_path, category="cat")
    file.write_text(json.dumps({"a": {"filename": "a.png", "regions": 3}}))
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(FormatError, match="'regions' must be a list"):
        via.read(file, tmp_path, category="cat")
