"""The index: what it keeps, what it leaves out and why."""

import copy
import time
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from instseg.data.coco import AnnotationError, load_coco
from instseg.data.defects import Severity
from instseg.data.index import CocoIndex, build_index, screen
from instseg.ops import rle

KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "name",
     "file_name", "width", "height", "size", "counts"]
)  # fmt: skip
SQUARE = [[2, 3, 12, 3, 12, 8, 2, 8]]


def annotation(identity: int, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": 4,
        "bbox": [2, 3, 10, 5],
        "area": 50,
        "iscrowd": 0,
        "segmentation": SQUARE,
        **changes,
    }


def image(identity: int, **changes: Any) -> dict[str, Any]:
    return {"id": identity, "width": 30, "height": 20, "file_name": f"{identity}.png", **changes}


def dataset(*annotations: dict[str, Any], images: int = 2) -> dict[str, Any]:
    return {
        "images": [image(i) for i in range(1, images + 1)],
        "annotations": list(annotations),
        "categories": [{"id": 9, "name": "nut"}, {"id": 4, "name": "fig"}],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files 1.png to 5.png; the index never opens them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"{i}.png").touch()
    return folder


def index(coco: dict[str, Any], root: Path, need_masks: bool = True) -> CocoIndex:
    return build_index(coco, root, source="a.json", need_masks=need_masks)


def errors(found: CocoIndex) -> list[tuple[str, int | None, int | None]]:
    return [
        (d.code, d.image_id, d.annotation_id) for d in found.defects if d.severity is Severity.ERROR
    ]


def test_records_by_hand(root: Path) -> None:
    crowd = {"size": [20, 30], "counts": [40, 2, 558]}
    coco = dataset(
        annotation(11),
        annotation(12, category_id=9, bbox=[2.0, 0.0, 1.0, 2.0], iscrowd=1, segmentation=crowd),
    )
    before = copy.deepcopy(coco)
    found = index(coco, root)
    assert coco == before
    assert found.class_names == ["fig", "nut"]
    assert found.category_ids == [4, 9]
    first, second = found.records
    assert (first.image_id, first.path, first.size) == (1, (root / "1.png").resolve(), (20, 30))
    assert first.boxes.dtype == np.float32
    np.testing.assert_array_equal(first.boxes, [[2, 3, 12, 8], [2, 0, 3, 2]])
    assert first.labels.dtype == np.int64
    np.testing.assert_array_equal(first.labels, [0, 1])
    assert first.is_crowd.dtype == np.bool_
    np.testing.assert_array_equal(first.is_crowd, [False, True])
    np.testing.assert_array_equal(first.annotation_ids, [11, 12])
    assert first.segmentations is not None
    polygons, code = first.segmentations
    assert isinstance(polygons, list)
    np.testing.assert_array_equal(polygons[0], [[2, 3], [12, 3], [12, 8], [2, 8]])
    assert isinstance(code, dict)
    # COCO runs down the columns: 40 zeros are two columns of 20, so rows 0 and 1 of column 2.
    expected = np.zeros((20, 30), np.uint8)
    expected[:2, 2] = 1
    np.testing.assert_array_equal(rle.decode(code), expected)
    # An image without objects stays, with empty arrays of the right shape.
    assert second.boxes.shape == (0, 4)
    assert second.labels.shape == second.is_crowd.shape == second.annotation_ids.shape == (0,)
    assert second.segmentations == []
    assert errors(found) == []


def test_boxes_alone(root: Path) -> None:
    broken = annotation(12, segmentation=[[1, 2, 3]])
    found = index(dataset(annotation(11), broken), root, need_masks=False)
    assert [len(r.labels) for r in found.records] == [2, 0]
    assert [r.segmentations for r in found.records] == [None, None]
    assert all("segmentation" not in a for a in found.coco["annotations"])
    assert errors(found) == []


def test_boxes_are_clipped_in_records_but_not_in_the_ground_truth(root: Path) -> None:
    box = [-3.0, 15.0, 10.0, 5.5]
    found = index(dataset(annotation(11, bbox=box)), root)
    np.testing.assert_array_equal(found.records[0].boxes, [[0, 15, 7, 20]])
    assert found.coco["annotations"][0]["bbox"] == box
    assert [(d.code, d.severity) for d in found.defects if d.annotation_id] == [
        ("box-partly-outside", Severity.WARNING)
    ]


def test_missing_area_and_iscrowd_are_filled_in(root: Path) -> None:
    given = [annotation(11), annotation(12), annotation(13, area=-1), annotation(14)]
    del given[0]["area"], given[0]["iscrowd"]
    given[1]["area"] = None
    given[1]["segmentation"] = {"size": [20, 30], "counts": [0, 7, 593]}
    del given[3]["area"], given[3]["segmentation"]
    given.append(annotation(15, area=None, segmentation=[[1, 1, 2, 2, 3, 3]]))
    found = index(dataset(*given), root, need_masks=False)
    # The polygon is 10 x 5, the RLE has 7 pixels; with no mask, or a flat one, the box counts.
    assert [a["area"] for a in found.coco["annotations"]] == [50, 7, 50, 50, 50]
    assert [a["iscrowd"] for a in found.coco["annotations"]] == [0] * 5
    assert [(d.code, d.annotation_id) for d in found.defects if d.annotation_id] == [
        ("missing-iscrowd", 11),
        ("missing-area", 11),
        ("missing-area", 12),
        ("bad-area", 13),
        ("missing-area", 14),
        ("missing-area", 15),
    ]


def test_ground_truth_is_fit_for_scoring(root: Path) -> None:
    """Foreign keys, slivers and unusable records would each stop a scorer."""
    coco = dataset(
        annotation(11, segmentation=[[1, 1, 2, 2], *SQUARE], score="high", keypoints="x"),
        annotation(12, segmentation=[[1, 2, 3]]),
        annotation(13, image_id=2, iscrowd=True, segmentation={"size": [20, 30], "counts": [600]}),
        annotation(14, image_id=2),
    )
    coco["images"][0]["license"] = "MIT"
    coco["categories"][0]["supercategory"] = 5
    found = index(coco, root)
    assert found.coco == {
        "images": [image(1), image(2)],
        "annotations": [annotation(11), annotation(14, image_id=2)],
        "categories": [{"id": 4, "name": "fig"}, {"id": 9, "name": "nut"}],
    }
    reference = COCO()
    reference.dataset = found.coco
    reference.createIndex()
    assert [reference.annToMask(a).sum() for a in found.coco["annotations"]] == [50, 50]


def test_what_is_left_out_takes_its_annotations_with_it(root: Path) -> None:
    coco = dataset(
        annotation(11),
        annotation(12, bbox=[2, 3, 0, 5]),
        annotation(13, bbox=[2, 3, 4, -5]),
        annotation(14, image_id=7),
        annotation(15, image_id=3),
        annotation(16, image_id=4),
        images=4,
    )
    coco["images"].append(image(7))
    coco["images"][2]["height"] = 0
    coco["images"][3]["file_name"] = "gone.png"
    found = index(coco, root)
    assert [r.image_id for r in found.records] == [1, 2]
    assert [a["id"] for a in found.coco["annotations"]] == [11]
    assert [i["id"] for i in found.coco["images"]] == [1, 2]
    assert errors(found) == [
        ("image-no-area", 3, None),
        ("box-no-area", 1, 12),
        ("box-no-area", 1, 13),
        ("image-missing", 4, None),
        ("image-missing", 7, None),
    ]
    assert found.summary() == (
        "left out 5 of 6 annotations and 3 of 5 images (their annotations with them): "
        "1 image-no-area (image 3), 2 box-no-area (annotation 12, 13), "
        "2 image-missing (image 4, 7); run `instseg dataset check` for the whole list"
    )


def test_summary_shortens_long_lists_and_says_when_all_is_used(root: Path) -> None:
    many = [annotation(i, bbox=[0, 0, 0, 0]) for i in range(1, 9)]
    found = index(dataset(*many), root)
    assert "8 box-no-area (annotation 1, 2, 3, 4, 5, ...);" in found.summary()
    clean = index(dataset(annotation(11)), root)
    assert clean.summary() == "2 images, 1 annotations, 2 classes; none left out"


def test_different_records_under_one_id_all_go(root: Path) -> None:
    coco = dataset(annotation(11), annotation(12, image_id=2), annotation(13, image_id=3))
    coco["images"] += [image(2, file_name="5.png"), image(3), image(3)]
    coco["categories"].append({"id": 4, "name": "fig"})
    found = index(coco, root)
    # Image 2 is two files: its annotations could belong to either. Image 3 is given twice alike.
    assert [r.image_id for r in found.records] == [1, 3]
    assert [a["id"] for a in found.coco["annotations"]] == [11, 13]
    assert errors(found) == [
        ("duplicate-category-id", None, None),
        ("duplicate-image-id", 2, None),
        ("duplicate-image-id", 2, None),
        ("duplicate-image-id", 3, None),
    ]
    assert "images[1], images[2]" in found.defects[2].message


def test_of_equal_annotation_ids_the_first_stays(root: Path) -> None:
    found = index(dataset(annotation(11), annotation(11, image_id=2)), root)
    assert [len(r.labels) for r in found.records] == [1, 0]
    assert errors(found) == [("duplicate-annotation-id", 2, 11)]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "/etc/passwd", "C:\\x.png", "\\x.png", "..\\x.png"],
)
def test_paths_that_leave_the_root(root: Path, name: str) -> None:
    (root.parent / "secret.png").touch()
    coco = dataset(annotation(11, image_id=2))
    coco["images"][1]["file_name"] = name
    found = index(coco, root)
    assert [r.image_id for r in found.records] == [1]
    assert errors(found) == [("path-leaves-root", 2, None)]


def test_links_out_of_the_root_are_refused_and_those_within_followed(root: Path) -> None:
    outside = root.parent / "outside.png"
    outside.touch()
    (root / "out.png").symlink_to(outside)
    (root / "in.png").symlink_to(root / "1.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "folder.png").mkdir()
    coco = dataset(images=0)
    names = ("in", "out", "loop", "folder", "none", "x" * 300)
    coco["images"] = [image(i, file_name=f"{name}.png") for i, name in enumerate(names)]
    found = index(coco, root)
    assert [r.path for r in found.records] == [(root / "1.png").resolve()]
    assert errors(found) == [
        ("path-leaves-root", 1, None),
        ("image-missing", 2, None),
        ("image-missing", 3, None),
        ("image-missing", 4, None),
        ("image-missing", 5, None),
    ]
    # A root that is itself a link is fine.
    (root.parent / "link").symlink_to(root)
    assert len(index(dataset(), root.parent / "link").records) == 2


def test_images_in_subfolders(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "1.png").touch()
    coco = dataset(images=1)
    coco["images"][0]["file_name"] = "a/1.png"
    assert index(coco, root).records[0].path == (root / "a" / "1.png").resolve()


def test_nothing_left_is_an_error_that_says_why(root: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.json: no image can be used: the file lists no"):
        index(dataset(images=0), root)
    coco = dataset(annotation(11))
    coco["images"] = [image(8), image(9)]
    with pytest.raises(AnnotationError, match=r"a\.json: no image.*2 image-missing \(image 8, 9\)"):
        index(coco, root)
    with pytest.raises(AnnotationError, match="no category can be used: the file lists none"):
        index({**dataset(), "categories": []}, root)
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        index(dataset(), root / "none")


def test_an_annotation_without_a_mask(root: Path) -> None:
    missing: list[dict[str, Any]] = [
        annotation(i, segmentation=value) for i, value in enumerate((None, [], ""), start=11)
    ]
    missing.append(annotation(14))
    del missing[-1]["segmentation"]
    coco = dataset(*missing)
    found = index(coco, root)
    assert errors(found) == [("mask-missing", 1, i) for i in (11, 12, 13, 14)]
    assert len(index(coco, root, need_masks=False).records[0].labels) == 4


def test_both_rle_forms_and_polygons_give_the_same_mask(root: Path) -> None:
    code = rle.from_polygons([np.array(SQUARE, float).reshape(-1, 2)], (20, 30))
    pixels = rle.decode(code)
    changes = np.flatnonzero(np.diff(pixels.reshape(-1, order="F"), prepend=0)).tolist()
    plain = {"size": [20, 30], "counts": np.diff([0, *changes, 600]).tolist()}
    text = {"size": [20, 30], "counts": code["counts"].decode()}
    found = index(
        dataset(annotation(1, segmentation=plain), annotation(2, segmentation=text)), root
    )
    assert found.records[0].segmentations == [code, code]
    assert pixels.sum() == 50


def test_large_sets_are_indexed_fast(root: Path) -> None:
    """COCO val has 36,000 annotations; a twelfth of it must take a twelfth of a few seconds."""
    outline = np.column_stack([15 + 9 * np.cos(np.arange(0, 6.2, 0.15)),
                               10 + 9 * np.sin(np.arange(0, 6.2, 0.15))])  # fmt: skip
    polygon = [outline.reshape(-1).tolist()]
    coco = dataset(*(annotation(i, segmentation=polygon) for i in range(1, 3001)))
    start = time.process_time()
    found = index(coco, root)
    assert time.process_time() - start < 1.0
    assert len(found.records[0].labels) == 3000


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 4, 20, 30, 600, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
RECORD = st.dictionaries(KEYS, JSON, max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    images=st.lists(RECORD | JSON, max_size=2),
    annotations=st.lists(RECORD | JSON, max_size=4),
    categories=st.lists(RECORD | JSON, max_size=2),
    need_masks=st.booleans(),
)
def test_any_json_is_screened_into_what_a_scorer_takes(
    images: list[Any], annotations: list[Any], categories: list[Any], need_masks: bool
) -> None:
    """Arbitrary values over sound records: nothing raises, and hotcoco, which is strict, loads."""
    base = dataset(annotation(1))

    def over(sound: dict[str, Any], changes: Any) -> Any:
        return {**sound, **changes} if isinstance(changes, dict) else changes

    coco = {
        "images": [image(1), *(over(image(i), r) for i, r in enumerate(images, start=2))],
        "annotations": [over(annotation(i), r) for i, r in enumerate(annotations, start=1)],
        "categories": [*base["categories"], *(over({"id": 7, "name": "x"}, r) for r in categories)],
    }
    screened = screen(coco, source="a.json", need_masks=need_masks)
    hotcoco.COCO(screened.coco).healthcheck()
    assert all(isinstance(defect.message, str) for defect in screened.defects)


@pytest.mark.real_data
@pytest.mark.parametrize("part", ["train", "val"])
def test_real_set_agrees_with_pycocotools(real_data: Path, part: str) -> None:
    folder = real_data / "coco_tiny80"
    path = folder / "annotations" / f"instances_{part}2017.json"
    coco = load_coco(path)
    found = build_index(coco, folder / f"{part}2017", source=str(path), need_masks=True)
    assert "none left out" in found.summary()
    assert len(found.class_names) == 80
    reference = COCO(str(path))
    assert [r.image_id for r in found.records] == [i["id"] for i in coco["images"]]
    for record in found.records:
        expected = reference.loadAnns(reference.getAnnIds(record.image_id))
        boxes = np.array([a["bbox"] for a in expected])
        boxes[:, 2:] += boxes[:, :2]
        assert record.annotation_ids.tolist() == [a["id"] for a in expected]
        assert [found.category_ids[i] for i in record.labels] == [
            a["category_id"] for a in expected
        ]
        # Boxes of COCO reach past the image by at most rounding.
        np.testing.assert_allclose(record.boxes, boxes, atol=0.1)
        assert record.segmentations is not None
        for segmentation, wanted in zip(record.segmentations, expected, strict=True):
            code = (
                segmentation
                if isinstance(segmentation, dict)
                else rle.from_polygons(segmentation, record.size)
            )
            assert code == reference.annToRLE(wanted) or np.array_equal(
                coco_mask.decode(code), reference.annToMask(wanted)
            )


@pytest.mark.real_data
def test_published_ground_truth_is_kept_whole(real_data: Path) -> None:
    coco = load_coco(real_data / "coco_gold" / "instances_val2014_100.json")
    screened = screen(coco, source="gold", need_masks=True)
    assert [d.code for d in screened.defects] == ["non-contiguous-ids"]
    kept = {"id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"}
    assert screened.coco["annotations"] == [
        {key: a[key] for key in a if key in kept} for a in coco["annotations"]
    ]


def test_a_category_that_is_left_out_is_something_left_out(root: Path) -> None:
    coco = dataset(annotation(11))
    assert index(coco, root).is_whole
    coco["categories"].append({"id": 12})
    found = index(coco, root)
    assert found.class_names == ["fig", "nut"]
    assert not found.is_whole
