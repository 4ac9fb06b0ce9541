from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.data.formats import FormatError, voc
from instseg.data.image_io import ImageError


def item(name: str = "cat", box: tuple = (1, 1, 1, 1), more: str = "") -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def size(height: object, width: object) -> str:
    return f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"


def write(root: Path, stem: str, *parts: str, image: tuple[int, int] | None = (40, 60)) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    text = f"<annotation><filename>renamed.jpg</filename>{''.join(parts)}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)
    if image is not None:
        pixels = np.zeros((*image, 3), np.uint8)
        assert cv2.imwrite(str(root / "JPEGImages" / f"{stem}.jpg"), pixels)


def test_corners_count_from_one_and_are_inclusive(tmp_path):
    # Columns 1..60 and rows 1..40 are the whole image; columns 11..20 are ten pixels.
    write(tmp_path, "a", size(40, 60), item("dog", (1, 1, 60, 40)), item("cat", (11, 5, 20, 5.5)))
    coco = voc.read(tmp_path)
    assert coco["images"] == [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    whole, part = coco["annotations"]
    assert whole == {
        "id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0,
        "bbox": [0, 0, 60, 40], "area": 2400, "difficult": 0,
    }  # fmt: skip
    assert part["bbox"] == [10, 4, 10, 1.5]


def test_boxes_never_drawn_are_carried_through_without_area(tmp_path):
    write(tmp_path, "a", size(40, 60), item(box=(7, 8, 7, 8)), item(box=(9, 3, 4, 30)))
    boxes = [(a["bbox"], a["area"]) for a in voc.read(tmp_path)["annotations"]]
    assert boxes == [([6, 7, 0, 0], 0), ([8, 2, -5, 28], 0)]


def test_boxes_of_parts_are_not_the_object_s(tmp_path):
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
    head += "<ymax>2</ymax></bndbox></part>"
    write(tmp_path, "a", size(40, 60), item("person", (11, 11, 20, 20), head))
    coco = voc.read(tmp_path)
    assert [a["bbox"] for a in coco["annotations"]] == [[10, 10, 10, 10]]
    assert [c["name"] for c in coco["categories"]] == ["person"]


def test_difficult_is_kept_as_a_field_or_left_out(tmp_path):
    hard = item(more="<difficult>1</difficult>", box=(1, 1, 9, 9))
    write(tmp_path, "a", size(40, 60), hard, item(box=(2, 2, 9, 9)))
    kept = voc.read(tmp_path)["annotations"]
    assert [(a["difficult"], a["iscrowd"]) for a in kept] == [(1, 0), (0, 0)]
    easy = voc.read(tmp_path, keep_difficult=False)["annotations"]
    assert [(a["id"], a["bbox"][0]) for a in easy] == [(1, 1)]


@pytest.mark.parametrize("declared", ["", size(0, 0)])
def test_a_size_not_declared_is_the_image_s(tmp_path, declared):
    write(tmp_path, "a", declared, image=(13, 17))
    image = voc.read(tmp_path)["images"][0]
    assert (image["height"], image["width"]) == (13, 17)


def test_a_declared_size_is_kept_for_the_check_to_compare(tmp_path):
    write(tmp_path, "a", size(99, 88), image=(13, 17))
    write(tmp_path, "b", size(5, 6), image=None)
    images = voc.read(tmp_path)["images"]
    assert [(i["file_name"], i["height"], i["width"]) for i in images] == [
        ("a.jpg", 99, 88),
        ("b.jpg", 5, 6),
    ]


def test_no_size_at_all_names_the_image(tmp_path):
    write(tmp_path, "a", size(4, 4))
    write(tmp_path, "b", image=None)
    with pytest.raises(ImageError, match=r"b\.jpg"):
        voc.read(tmp_path)


def test_split_reads_its_images_in_sorted_order(tmp_path):
    for stem in ("c", "a", "b"):
        write(tmp_path, stem, size(4, 4), item(box=(1, 1, 3, 3)))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("c  1\n\na -1\n")
    assert [i["file_name"] for i in voc.read(tmp_path, split="val")["images"]] == ["a.jpg", "c.jpg"]
    assert [i["file_name"] for i in voc.read(tmp_path)["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    with pytest.raises(FormatError, match=r"test\.txt: no such file: there is no split 'test'"):
        voc.read(tmp_path, split="test")
    (lists / "val.txt").write_text("a\nnope\n")
    with pytest.raises(FormatError, match=r"val\.txt: line 2: there is no Annotations/nope\.xml"):
        voc.read(tmp_path, split="val")
    (lists / "val.txt").write_text("../../secret\n")
    with pytest.raises(FormatError, match=r"line 1: the path .* does not stay under"):
        voc.read(tmp_path, split="val")


def test_given_categories_decide_ids_and_refuse_others(tmp_path):
    write(tmp_path, "a", size(40, 60), item("cat", (1, 1, 9, 9)), item("dog", (1, 1, 9, 9)))
    coco = voc.read(tmp_path, categories=["dog", "cat"])
    assert [a["category_id"] for a in coco["annotations"]] == [2, 1]
    with pytest.raises(FormatError, match=r"a\.xml: object 2: class 'dog' is not among \['cat'\]"):
        voc.read(tmp_path, categories=["cat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "not a plain XML file"),
        ("<html></html>", "the outer element is <html>"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "not a plain XML file",
        ),
        (f"<annotation>{size(4, 'wide')}</annotation>", "'wide' is not a number"),
        ("<annotation><size/></annotation>", "<size/height> is missing or empty"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    write(tmp_path, "a", size(4, 4))
    (tmp_path / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(FormatError, match=rf"a\.xml: {message}"):
        voc.read(tmp_path)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ("<object><name>cat</name></object>", "<bndbox/xmin> is missing or empty"),
        (item(name=" "), "<name> is missing or empty"),
        (item(box=("left", 1, 2, 2)), "'left' is not a number"),
        (item(box=("nan", 1, 2, 2)), "'nan' is not finite"),
        (item(more="<difficult>maybe</difficult>"), "<difficult> is 'maybe'"),
    ],
)
def test_broken_objects_are_named(tmp_path, element, message):
    write(tmp_path, "a", size(40, 60), item(box=(1, 1, 9, 9)), element)
    with pytest.raises(FormatError, match=rf"a\.xml: object 2: {message}"):
        voc.read(tmp_path)


def test_a_folder_of_another_layout_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"JPEGImages: no such folder"):
        voc.read(tmp_path)


@pytest.mark.real_data
def test_bccd(real_data):
    root = real_data / "bccd"
    coco = voc.read(root)
    assert len(coco["images"]) == 364
    assert len(coco["annotations"]) == 4888
    assert [c["name"] for c in coco["categories"]] == ["Platelets", "RBC", "WBC"]
    # BloodImage_00000: the first object's corners are 260 177 491 376.
    assert coco["annotations"][0]["bbox"] == [259, 176, 232, 200]
    names = {i["id"]: i["file_name"] for i in coco["images"]}
    no_area = {names[a["image_id"]] for a in coco["annotations"] if a["area"] == 0}
    assert no_area == {"BloodImage_00338.jpg", "BloodImage_00343.jpg"}


@pytest.mark.real_data
def test_bccd_agrees_with_hotcoco(real_data):
    """hotcoco's reader as an independent truth, wherever a box has an area."""
    from hotcoco import COCO

    root = real_data / "bccd"
    theirs = COCO.from_voc(str(root)).dataset
    ours = voc.read(root)
    assert ours["images"] == theirs["images"]
    assert ours["categories"] == theirs["categories"]
    for a, b in zip(ours["annotations"], theirs["annotations"], strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == b["bbox"] or a["area"] == 0


@pytest.mark.real_data
def test_bccd_splits(real_data):
    sizes = {
        split: len(voc.read(real_data / "bccd", split=split)["images"])
        for split in ("train", "val", "test")
    }
    assert sizes == {"train": 205, "val": 87, "test": 72}
