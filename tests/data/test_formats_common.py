import json
import math
from pathlib import Path

import pytest

from instseg.data.formats import FormatError, write_coco
from instseg.data.formats.common import (
    CocoBuilder,
    Record,
    ellipse_polygon,
    list_files,
    read_json,
    rectangle_polygon,
    relative_path,
)
from instseg.ops import rle

RECORD = Record(Path("some.json"), "shape 7")


def test_ids_count_from_one_and_categories_are_sorted_names():
    builder = CocoBuilder()
    first = builder.add_image(RECORD, "b.jpg", (4, 6))
    second = builder.add_image(RECORD, "a.jpg", (2, 3))
    builder.add_box(RECORD, second, "zebra", [0, 0, 2, 1])
    builder.add_box(RECORD, first, "ant", [1, 1, 3, 2], difficult=1)
    assert builder.build() == {
        "images": [
            {"id": 1, "file_name": "b.jpg", "height": 4, "width": 6},
            {"id": 2, "file_name": "a.jpg", "height": 2, "width": 3},
        ],
        "annotations": [
            {
                "id": 1, "image_id": 2, "category_id": 2, "iscrowd": 0,
                "bbox": [0, 0, 2, 1], "area": 2,
            },
            {
                "id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0,
                "bbox": [1, 1, 3, 2], "area": 6, "difficult": 1,
            },
        ],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "zebra"}],
    }  # fmt: skip


def test_given_categories_keep_their_order_and_refuse_others():
    builder = CocoBuilder(["zebra", "ant", "unused"])
    image = builder.add_image(RECORD, "a.jpg", (2, 3))
    builder.add_box(RECORD, image, "zebra", [0, 0, 1, 1])
    with pytest.raises(FormatError, match=r"some\.json: shape 7: class 'cat' is not among"):
        builder.add_box(RECORD, image, "cat", [0, 0, 1, 1])
    built = builder.build()
    assert [c["name"] for c in built["categories"]] == ["zebra", "ant", "unused"]
    assert built["annotations"][0]["category_id"] == 1


def test_a_category_or_an_image_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        CocoBuilder(["cat", "cat"])
    builder = CocoBuilder()
    builder.add_image(RECORD, "a.jpg", (2, 3))
    with pytest.raises(FormatError, match=r"'a\.jpg' is described a second time"):
        builder.add_image(RECORD, "a.jpg", (2, 3))


def test_polygons_of_one_object():
    builder = CocoBuilder()
    image = builder.add_image(RECORD, "a.jpg", (20, 20))
    # A right triangle of area 6, and a unit square drawn against the clock.
    parts = [[1, 1, 5, 1, 1, 4], [10, 10, 10, 11, 11, 11, 11, 10]]
    builder.add_polygons(RECORD, image, "cat", parts)
    annotation = builder.build()["annotations"][0]
    assert annotation["bbox"] == [1, 1, 10, 10]
    assert annotation["area"] == 7
    assert annotation["segmentation"] == parts


@pytest.mark.parametrize("polygon", [[1, 1, 5, 1], [1, 1, 5, 1, 1], []])
def test_a_polygon_of_fewer_than_three_points_is_refused(polygon):
    builder = CocoBuilder()
    image = builder.add_image(RECORD, "a.jpg", (20, 20))
    with pytest.raises(FormatError, match="three"):
        builder.add_polygons(RECORD, image, "cat", [polygon])


@pytest.mark.parametrize("radius", [0.05, 1.0, 10.0, 333.0, 2500.0])
def test_a_circle_stays_within_a_tenth_of_a_pixel(radius):
    flat = ellipse_polygon((3.0, -2.0), (radius, radius))
    points = list(zip(flat[0::2], flat[1::2], strict=True))
    assert 12 <= len(points) <= 360
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        assert math.hypot(x1 - 3, y1 + 2) == pytest.approx(radius)  # inscribed
        middle = math.hypot((x1 + x2) / 2 - 3, (y1 + y2) / 2 + 2)
        assert radius - 0.1 - 1e-9 <= middle < radius


def test_a_turned_ellipse_satisfies_its_equation():
    angle = 0.6  # from x towards y: clockwise on the image
    flat = ellipse_polygon((50, 40), (30, 10), angle)
    assert flat[:2] == pytest.approx([50 + 30 * math.cos(angle), 40 + 30 * math.sin(angle)])
    for x, y in zip(flat[0::2], flat[1::2], strict=True):
        along = (x - 50) * math.cos(angle) + (y - 40) * math.sin(angle)
        across = -(x - 50) * math.sin(angle) + (y - 40) * math.cos(angle)
        assert (along / 30) ** 2 + (across / 10) ** 2 == pytest.approx(1)


def test_a_rectangle_covers_its_pixels_whatever_corners_are_given():
    polygon = rectangle_polygon(7, 9, 2, 3)
    assert polygon == [2, 3, 7, 3, 7, 9, 2, 9]
    mask = rle.from_polygons([polygon], (12, 12))
    assert rle.area(mask) == 30
    assert rle.to_box(mask) == (2, 3, 7, 9)


@pytest.mark.parametrize(
    ("path", "normal"),
    [("a.jpg", "a.jpg"), ("./x/../y/a.jpg", "y/a.jpg"), ("x\\a.jpg", "x/a.jpg"), ("..a", "..a")],
)
def test_relative_path_normalises(path, normal):
    assert relative_path(RECORD, path) == normal


@pytest.mark.parametrize(
    "path",
    ["../a.jpg", "x/../../a.jpg", "..\\a.jpg", "/etc/passwd", "C:\\a.jpg", "c:a.jpg", "", ".."],
)
def test_relative_path_refuses_to_leave_the_root(path):
    with pytest.raises(FormatError, match=r"shape 7: the path .* does not stay under"):
        relative_path(RECORD, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "x"], "'x' is not a number"),
        ([1, None], "None is not a number"),
        ([float("nan")], "nan is not finite"),
        (["inf"], "'inf' is not finite"),
        ([10**400], "is not a number"),
        ("12", "expected a list of numbers"),
        (None, "expected a list of numbers"),
    ],
)
def test_numbers_refuses_what_is_no_finite_number(values, message):
    with pytest.raises(FormatError, match=message):
        RECORD.numbers(values)


def test_list_files_is_sorted_recursive_and_passes_over_hidden_files(tmp_path):
    for name in ("b.PNG", "a.png", "sub/c.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.as_posix() for p in list_files(tmp_path, {".png"})] == ["a.png", "b.PNG", "sub/c.png"]
    with pytest.raises(FormatError, match=r"no file in it ends in \.xml"):
        list_files(tmp_path, {".xml"})
    with pytest.raises(FormatError, match="no such folder"):
        list_files(tmp_path / "absent", {".png"})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff\xfe\xff", "not UTF-8"), (b"[" * 200_000, "not JSON")],
)
def test_read_json_names_the_file(tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=rf"bad\.json: {message}"):
        read_json(file)


def test_read_json_refuses_a_file_too_large_to_be_annotations(tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as handle:
        handle.truncate((1 << 30) + 1)  # sparse: takes no space
    with pytest.raises(FormatError, match="larger than"):
        read_json(file)


def test_write_coco_replaces_whole_files_or_nothing(tmp_path):
    path = tmp_path / "out.json"
    good = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Zürich"}]}
    write_coco(good, path)
    assert json.loads(path.read_text(encoding="utf-8")) == good
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_coco({"images": [float("nan")]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == good
    with pytest.raises(OSError, match="absent"):
        write_coco(good, tmp_path / "absent" / "out.json")
    assert list(tmp_path.iterdir()) == [path]


def test_write_coco_leaves_the_old_file_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_coco({"images": []}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
