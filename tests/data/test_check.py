"""The checker: every defect planted in a sound data set is found, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from instseg.data.check import check_coco, format_report, has_errors
from instseg.data.coco import AnnotationError, load_coco
from instseg.data.defects import Defect, Severity

H, W = 40, 60
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

Coco = dict[str, Any]
Found = tuple[str, Severity, int | None, int | None]


def sound() -> Coco:
    """Ten objects of each of two classes on two images, no two alike."""
    annotations = []
    for i in range(20):
        x, y, w, h = 2 + i % 10 * 4, 3 + i // 10 * 12, 10 + i % 3, 8
        annotations.append(
            {
                "id": i + 1,
                "image_id": 1 + i % 2,
                "category_id": 1 + i // 10,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": W, "height": H},
            {"id": 2, "file_name": "sub/b.jpg", "width": W, "height": H},
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "fig"}, {"id": 2, "name": "nut"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "images" / "sub" / "b.jpg")
    return tmp_path


def check(folder: Path, coco: Coco, **options: Any) -> list[Defect]:
    path = folder / "a.json"
    path.write_text(json.dumps(coco))
    defects = check_coco(path, folder / "images", **options)
    assert all(defect.file == str(path) for defect in defects)
    assert all(defect.message for defect in defects)
    return defects


def brief(defects: list[Defect]) -> list[Found]:
    return [(d.code, d.severity, d.image_id, d.annotation_id) for d in defects]


def change(position: int, section: str = "annotations", **values: Any) -> Callable[[Coco], None]:
    return lambda coco: coco[section][position].update(values)


def drop(position: int, key: str, section: str = "annotations") -> Callable[[Coco], None]:
    return lambda coco: coco[section][position].pop(key)


def add(section: str, record: object) -> Callable[[Coco], None]:
    return lambda coco: coco[section].append(record)


def copy_of(section: str, position: int, **values: Any) -> Callable[[Coco], None]:
    return lambda coco: coco[section].append({**coco[section][position], **values})


def test_a_sound_set_has_no_defects(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    defects = check(folder, sound(), on_progress=lambda done, total: steps.append((done, total)))
    assert defects == []
    assert steps == [(1, 2), (2, 2)]
    assert not has_errors(defects)
    assert format_report(defects) == "no defects"


FAR = [100, 3, 5, 5]
RLE = {"size": [H, W], "counts": [H * W]}

# The first annotation has id 1, lies on image 1, and covers x 2..12, y 3..11.
ANNOTATION_DEFECTS: list[tuple[Callable[[Coco], None], list[tuple[str, Severity]]]] = [
    (change(0, bbox=[2, 3, 0, 8]), [("box-no-area", ERROR)]),
    (change(0, bbox=[2, 3, 10, -8]), [("box-no-area", ERROR)]),
    (change(0, bbox=[59.9999999, 3, 1e-9, 8]), [("box-no-area", ERROR)]),
    (change(0, bbox=FAR), [("box-outside", ERROR)]),
    (change(0, bbox=[-20, 3, 20, 5]), [("box-outside", ERROR)]),
    (change(0, bbox=[1e308, 3, 1e308, 5]), [("box-outside", ERROR)]),
    (change(0, bbox=[float("nan"), 3, 10, 8]), [("box-not-finite", ERROR)]),
    (change(0, bbox=[2, 3, float("inf"), 8]), [("box-not-finite", ERROR)]),
    (change(0, bbox=[2, 3, 10, 10**400]), [("box-not-finite", ERROR)]),
    (change(0, bbox=[-1.5, 3, 13, 8]), [("box-partly-outside", WARNING)]),
    (change(0, bbox=[-1.0, 3, 13, 8]), []),
    (change(0, bbox=[2, 3, 10]), [("bad-type", ERROR)]),
    (change(0, bbox=[2, 3, 10, "8"]), [("bad-type", ERROR)]),
    (change(0, bbox=None), [("bad-type", ERROR)]),
    (drop(0, "bbox"), [("missing-key", ERROR)]),
    (change(0, category_id=3), [("unknown-category", ERROR)]),
    (change(0, category_id="1"), [("bad-type", ERROR)]),
    (drop(0, "category_id"), [("missing-key", ERROR)]),
    (change(0, iscrowd=2), [("bad-type", ERROR)]),
    (change(0, iscrowd="0"), [("bad-type", ERROR)]),
    (drop(0, "iscrowd"), [("missing-iscrowd", WARNING)]),
    (change(0, iscrowd=1), [("crowd-with-polygon", WARNING)]),
    (drop(0, "area"), [("missing-area", WARNING)]),
    (change(0, area=0), [("bad-area", WARNING)]),
    (change(0, area=float("inf")), [("bad-area", WARNING)]),
    (change(0, area="80"), [("bad-area", WARNING)]),
    (change(0, area=300), [("area-disagrees", WARNING)]),
    (change(0, segmentation=[[2, 3, 12, 3, 12]]), [("mask-malformed", ERROR)]),
    (change(0, segmentation=[[2, 3, 12, 3]]), [("mask-malformed", ERROR)]),
    (change(0, segmentation=[[2, 3, 12, 3, float("nan"), 9]]), [("mask-malformed", ERROR)]),
    (change(0, segmentation={"size": [W, H], "counts": [H * W]}), [("mask-malformed", ERROR)]),
    (change(0, segmentation={"size": [H, W], "counts": [5]}), [("mask-malformed", ERROR)]),
    (change(0, segmentation={"size": [H, W], "counts": "\x00"}), [("mask-malformed", ERROR)]),
    (change(0, segmentation={"size": [H, W], "counts": [-1, H * W + 1]}),
     [("mask-malformed", ERROR)]),
    (change(0, segmentation="RLE"), [("mask-malformed", ERROR)]),
    (change(0, segmentation=RLE), [("mask-empty", ERROR)]),
    (change(0, segmentation=[[100, 3, 110, 3, 110, 9]]), [("mask-empty", ERROR)]),
    (change(0, segmentation=[[2, 3, 12, 3, 12, 3]]), [("mask-empty", ERROR)]),
    (change(0, segmentation=[]), [("mask-missing", WARNING)]),
    (drop(0, "segmentation"), [("mask-missing", WARNING)]),
    (change(0, segmentation=[[2, 3, 12, 3, 12, 11, 2, 11], [1, 1]]),
     [("mask-part-degenerate", WARNING)]),
    (change(0, segmentation=[[32, 3, 42, 3, 42, 11, 32, 11]]),
     [("mask-disagrees-with-box", WARNING)]),
    (change(0, bbox=[0, 0, 0, 0], category_id=7, segmentation="x"),
     [("unknown-category", ERROR), ("box-no-area", ERROR), ("mask-malformed", ERROR)]),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "expected"), ANNOTATION_DEFECTS)
def test_planted_annotation_defects(
    folder: Path, plant: Callable[[Coco], None], expected: list[tuple[str, Severity]]
) -> None:
    coco = sound()
    plant(coco)
    # Enough other objects that leaving one out stirs no note about rare classes.
    coco["annotations"].append(
        {**coco["annotations"][1], "id": 21, "bbox": [40, 20, 9, 9], "area": 81,
         "segmentation": [[40, 20, 49, 20, 49, 29, 40, 29]]}
    )  # fmt: skip
    defects = check(folder, coco)
    assert brief(defects) == [(code, severity, 1, 1) for code, severity in expected]
    assert has_errors(defects) == any(severity is ERROR for _, severity in expected)


IMAGE_DEFECTS: list[tuple[Callable[[Coco], None], list[Found]]] = [
    (change(0, "images", width=0), [("image-no-area", ERROR, 1, None)]),
    (change(0, "images", height=-H), [("image-no-area", ERROR, 1, None)]),
    (change(0, "images", width=10**400), [("image-too-large", ERROR, 1, None)]),
    (change(0, "images", width=100_000, height=100_000), [("image-too-large", ERROR, 1, None)]),
    (change(0, "images", width=60.0), [("bad-type", ERROR, 1, None)]),
    (drop(0, "height", "images"), [("missing-key", ERROR, 1, None)]),
    (drop(0, "file_name", "images"), [("missing-key", ERROR, 1, None)]),
    (change(0, "images", file_name=""), [("bad-type", ERROR, 1, None)]),
    (change(0, "images", file_name="a\0.png"), [("bad-type", ERROR, 1, None)]),
    (change(0, "images", file_name="\ud800.png"), [("bad-type", ERROR, 1, None)]),
    (change(0, "images", file_name="../a.png"), [("path-leaves-root", ERROR, 1, None)]),
    (change(0, "images", file_name="/a.png"), [("path-leaves-root", ERROR, 1, None)]),
    (add("images", {"id": 1, "file_name": "c.png", "width": W, "height": H}),
     [("duplicate-image-id", ERROR, 1, None)] * 2),
    (copy_of("images", 0), [("duplicate-image-id", ERROR, 1, None)]),
    (copy_of("images", 0, id=3, file_name="./a.png"),
     [("duplicate-file-name", WARNING, 3, None), ("image-without-objects", NOTE, None, None)]),
    (add("images", 5), [("bad-type", ERROR, None, None)]),
    (drop(0, "id", "images"), [("missing-key", ERROR, None, None)]
     + [("unknown-image", ERROR, 1, i) for i in range(1, 21, 2)]),
    (change(0, "images", file_name="c.png"), [("image-missing", ERROR, 1, None)]),
    (change(0, "images", width=W + 1), [("image-size-differs", ERROR, 1, None)]),
    (change(0, "categories", id=5),
     [("non-contiguous-ids", NOTE, None, None), ("zero-instance-category", NOTE, None, None)]
     + [("unknown-category", ERROR, 1 + i % 2, i + 1) for i in range(10)]),
    (change(0, "categories", name="nut"), [("duplicate-category-name", WARNING, None, None)]),
    (change(0, "categories", name=3), [("bad-type", ERROR, None, None)]
     + [("unknown-category", ERROR, 1 + i % 2, i + 1) for i in range(10)]),
    (copy_of("categories", 0), [("duplicate-category-id", ERROR, None, None)]),
    (add("categories", {"id": 3, "name": "pea"}), [("zero-instance-category", NOTE, None, None)]),
    (add("categories", {"name": "pea"}), [("missing-key", ERROR, None, None)]),
    (add("categories", {"id": 3}), [("missing-key", ERROR, None, None)]),
    (add("categories", None), [("bad-type", ERROR, None, None)]),
    (change(0, image_id=9), [("unknown-image", ERROR, 9, 1)]),
    (change(0, image_id=True), [("bad-type", ERROR, None, 1)]),
    (change(0, id="x"), [("bad-type", ERROR, 1, None)]),
    (change(0, id=-1), [("bad-type", ERROR, 1, None)]),
    (change(0, id=2**63), [("bad-type", ERROR, 1, None)]),
    (change(0, id=0), [("annotation-id-zero", WARNING, 1, 0)]),
    (change(0, id=2), [("duplicate-annotation-id", ERROR, 2, 2)]),
    (add("annotations", "x"), [("bad-type", ERROR, None, None)]),
    (change(0, bbox=[2, 3, 50, 0.1], area=5, segmentation=[[2, 3, 52, 3, 52, 4, 2, 4]]),
     [("extreme-aspect-ratio", NOTE, 1, 1)]),
    (change(0, bbox=[10.1, 3, 12, 8], area=96,
            segmentation=[[10.1, 3, 22.1, 3, 22.1, 11, 10.1, 11]]),
     [("near-duplicate", NOTE, 1, 1), ("near-duplicate", NOTE, 1, 3)]),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "expected"), IMAGE_DEFECTS)
def test_planted_defects_of_other_records(
    folder: Path, plant: Callable[[Coco], None], expected: list[Found]
) -> None:
    coco = sound()
    plant(coco)
    # Notes that follow from what is left out are no matter here.
    aside = {"low-instance-category", "image-unreferenced"} - {code for code, *_ in expected}
    found = [defect for defect in check(folder, coco) if defect.code not in aside]
    assert sorted(brief(found), key=str) == sorted(expected, key=str)


def test_unreadable_images(folder: Path) -> None:
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:-200])
    (folder / "images" / "sub" / "b.jpg").write_bytes(b"no picture")
    defects = check(folder, sound())
    assert brief(defects) == [
        ("image-unreadable", ERROR, 1, None),
        ("image-unreadable", ERROR, 2, None),
    ]
    assert str(path) in defects[0].message


def test_images_of_other_channels_and_16_bits(folder: Path) -> None:
    """They are unreadable only as what they are not."""
    five = np.random.default_rng(0).integers(0, 65536, (H, W, 5)).astype(np.uint16)
    kind = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(folder / "images" / "a.png", five, **kind)
    tifffile.imwrite(
        folder / "images" / "sub" / "b.jpg", np.moveaxis(five, 2, 0), photometric="minisblack"
    )
    assert brief(check(folder, sound())) == [
        ("image-unreadable", ERROR, 1, None),
        ("image-unreadable", ERROR, 2, None),
    ]
    assert check(folder, sound(), channels=5) == []
    assert check(folder, sound(), channels=5, bits16="keep") == []
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        check(folder, sound(), channels=0)


def test_a_size_swapped_by_exif_is_explained(folder: Path) -> None:
    block = Image.Exif()
    block[0x0112] = 6
    Image.new("RGB", (W, H)).save(folder / "images" / "sub" / "b.jpg", exif=block)
    (defect,) = check(folder, sound())
    assert (defect.code, defect.image_id) == ("image-size-differs", 2)
    assert "is 40 x 60, but the annotation file says 60 x 40" in defect.message
    assert "EXIF orientation" in defect.message
    coco = sound()
    change(0, "images", width=W - 1)(coco)
    change(1, "images", width=H, height=W)(coco)
    (defect,) = [d for d in check(folder, coco) if d.severity is ERROR]
    assert "EXIF" not in defect.message


def test_a_link_out_of_the_root(folder: Path) -> None:
    (folder / "images" / "a.png").rename(folder / "a.png")
    (folder / "images" / "a.png").symlink_to(folder / "a.png")
    defects = [d for d in check(folder, sound()) if d.severity is ERROR]
    assert brief(defects) == [("path-leaves-root", ERROR, 1, None)]


def test_images_nobody_names(folder: Path) -> None:
    for i in range(7):
        Image.new("L", (4, 4)).save(folder / "images" / "sub" / f"extra{i}.PNG")
    (folder / "images" / "notes.txt").touch()
    (defect,) = check(folder, sound())
    assert (defect.code, defect.severity) == ("image-unreferenced", NOTE)
    assert defect.message.startswith("7 images below")
    assert defect.message.endswith("sub/extra0.PNG, sub/extra1.PNG, sub/extra2.PNG, "
                                   "sub/extra3.PNG, sub/extra4.PNG, ...")  # fmt: skip


def test_a_set_without_masks_lacks_nothing(folder: Path) -> None:
    coco = sound()
    for annotation in coco["annotations"]:
        annotation["segmentation"] = []
    assert check(folder, coco) == []


def test_rare_classes_and_empty_images_are_noted(folder: Path) -> None:
    coco = sound()
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] == 1]
    defects = check(folder, coco)
    assert brief(defects) == [
        ("low-instance-category", NOTE, None, None),
        ("image-without-objects", NOTE, None, None),
    ]
    assert "fig, nut" in defects[0].message
    assert defects[1].message.startswith("1 images")
    assert not has_errors(defects)


def test_report_groups_and_names_every_record(folder: Path) -> None:
    coco = sound()
    change(0, bbox=[2, 3, 0, 8])(coco)
    change(3, bbox=FAR)(coco)
    change(4, bbox=FAR, area=None)(coco)
    change(0, "categories", name="nut")(coco)
    file = folder / "a.json"
    lines = format_report(check(folder, coco)).splitlines()
    assert lines == [
        "error box-no-area (1)",
        f"  {file}, image 1, annotation 1: the box is 0 wide and 8 high",
        "error box-outside (2)",
        f"  {file}, image 2, annotation 4: the box 100, 3 to 105, 8 lies outside the image of "
        "60 x 40",
        f"  {file}, image 1, annotation 5: the box 100, 3 to 105, 8 lies outside the image of "
        "60 x 40",
        "warning duplicate-category-name (1)",
        f"  {file}: 2 categories have the name 'nut' and are learnt as different classes",
        "warning missing-area (1)",
        f"  {file}, image 1, annotation 5: there is no 'area'; it is computed",
        "note low-instance-category (1)",
        f"  {file}: 1 classes with fewer than 10 objects: nut",
        "3 errors, 2 warnings, 1 note",
    ]


def test_what_cannot_be_loaded(folder: Path) -> None:
    path = folder / "a.json"
    path.write_text('{"images": [')
    with pytest.raises(AnnotationError, match=r"a\.json: not valid JSON at line 1"):
        check_coco(path, folder / "images")
    path.write_text(json.dumps(sound()))
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        check_coco(path, folder / "none")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        check_coco(folder / "b.json", folder / "images")


def test_a_hostile_file_is_survived(folder: Path) -> None:
    """Each of these crashes, hangs or fills the memory of a reader that trusts it."""
    values: list[object] = [
        {"size": [H, W], "counts": "oooooooooooo" * 50},
        {"size": [2**31, 2**31], "counts": "0"},
        {"size": [H, W], "counts": [2**32, -(2**32) + H * W]},
        [[0, 0, 1e9, 1e9, 0, 1e9]],
        [[0, 0, 6e7, 0, 0, 6e7]],
        [[0, 0] * 100_000],
        {"size": "ab", "counts": {}},
        {},
        5,
    ]
    coco = sound()
    for annotation, value in zip(coco["annotations"], values, strict=False):
        annotation["segmentation"] = value
    found = {d.annotation_id: d.code for d in check(folder, coco) if d.severity is ERROR}
    assert found == dict.fromkeys(range(1, 10), "mask-malformed") | {6: "mask-empty"}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "images", "expected"),
    [
        ("coco_tiny80/annotations/instances_train2017.json", "coco_tiny80/train2017",
         {"non-contiguous-ids", "low-instance-category"}),
        ("coco_tiny80/annotations/instances_val2017.json", "coco_tiny80/val2017",
         {"non-contiguous-ids", "low-instance-category", "extreme-aspect-ratio"}),
        ("fruits_nuts/trainval.json", "fruits_nuts/images", set()),
    ],
)  # fmt: skip
def test_real_sets_have_notes_alone(
    real_data: Path, file: str, images: str, expected: set[str]
) -> None:
    defects = check_coco(real_data / file, real_data / images)
    assert {d.code for d in defects} == expected
    assert {d.severity for d in defects} <= {NOTE}


@pytest.mark.real_data
def test_published_masks_agree_with_their_boxes_and_areas(real_data: Path, tmp_path: Path) -> None:
    """The images of this set are not at hand; blank ones of the same sizes stand in."""
    file = real_data / "coco_gold" / "instances_val2014_100.json"
    for image in load_coco(file)["images"]:
        Image.new("L", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    codes = {d.code for d in check_coco(file, tmp_path)}
    assert codes == {"non-contiguous-ids", "low-instance-category", "zero-instance-category"}
