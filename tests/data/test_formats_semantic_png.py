import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from instseg.data.dataset import DetectionDataset
from instseg.data.folds import take_fold
from instseg.data.formats import FormatError, semantic_png
from instseg.data.image_io import ImageError
from instseg.data.index import build_index
from instseg.data.sampling import SampleKey
from instseg.data.transforms import Compose

CELLS = np.array([[0, 255, 255], [0, 255, 0]], np.uint8)


def save_pair(root: Path, name: str, labels: np.ndarray, suffix: str = "") -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    size = labels.shape[:2]
    assert cv2.imwrite(str(root / "images" / f"{name}.png"), np.zeros((*size, 3), np.uint8))
    Image.fromarray(labels).save(root / "masks" / f"{name}{suffix}.png")


def convert(root: Path, **options) -> dict:
    coco = semantic_png.read(root / "images", root / "masks", **options)
    return json.loads(json.dumps(coco))


def masks_of(coco: dict, image_id: int = 1) -> list[tuple[int, int, list]]:
    """(category id, is crowd, mask) of each annotation."""
    return [
        (a["category_id"], a["iscrowd"], coco_mask.decode(a["segmentation"]).tolist())
        for a in coco["annotations"]
        if a["image_id"] == image_id
    ]


def test_hand_worked_classes(tmp_path):
    labels = np.array([[0, 3, 3, 255], [7, 3, 0, 7]], np.uint8)
    save_pair(tmp_path, "a", labels)
    save_pair(tmp_path, "b", np.zeros((2, 2), np.uint8))
    coco = convert(tmp_path, classes={"tree": 7, "car": 3})
    assert coco["categories"] == [{"id": 1, "name": "tree"}, {"id": 2, "name": "car"}]
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "b.png"]
    assert masks_of(coco) == [
        (1, 0, [[0, 0, 0, 0], [1, 0, 0, 1]]),
        (2, 0, [[0, 1, 1, 0], [0, 1, 0, 0]]),
        (1, 1, [[0, 0, 0, 1], [0, 0, 0, 0]]),
    ]
    assert masks_of(coco, 2) == []
    assert [(a["bbox"], a["area"]) for a in coco["annotations"]] == [
        ([0, 1, 4, 1], 2),
        ([1, 0, 2, 2], 3),
        ([3, 0, 1, 1], 1),
    ]


def test_background_and_ignore_as_given(tmp_path):
    save_pair(tmp_path, "a", np.array([[0, 1, 2, 255]], np.uint8))
    found = masks_of(convert(tmp_path, classes={"x": 255, "y": 0}, background=1, ignore=2))
    assert found == [(1, 0, [[0, 0, 0, 1]]), (2, 0, [[1, 0, 0, 0]]), (1, 1, [[0, 0, 1, 0]])]
    # 0 is a class and 255 is the background: then neither has its usual meaning.
    save_pair(tmp_path, "a", np.array([[0, 255]], np.uint8))
    assert masks_of(convert(tmp_path, classes={"x": 0}, background=255)) == [(1, 0, [[1, 0]])]
    save_pair(tmp_path, "a", np.array([[0, 1]], np.uint8))
    found = masks_of(convert(tmp_path, classes={"x": 1}, ignore=0))
    assert found == [(1, 0, [[0, 1]]), (1, 1, [[1, 0]])]


@pytest.mark.parametrize(
    ("labels", "options", "read_as"),
    [
        (CELLS, {}, "{0, 255}: read as 0 = background, 255 = cell"),
        (CELLS // 255, {}, "{0, 1}: read as 0 = background, 1 = cell"),
        (CELLS > 0, {}, "{0, 1}: read as 0 = background, 1 = cell"),
        (np.dstack([CELLS] * 3), {}, "{0, 255}: read as 0 = background, 255 = cell"),
        (255 - CELLS, {"background": 255}, "{0, 255}: read as 0 = cell, 255 = background"),
    ],
    ids=["0/255", "0/1", "1 bit", "rgb", "inverted"],
)
def test_binary_masks_are_recognised_and_reported(tmp_path, caplog, labels, options, read_as):
    save_pair(tmp_path, "a", labels)
    with caplog.at_level(logging.INFO):
        coco = convert(tmp_path, category="cell", **options)
    assert coco["categories"] == [{"id": 1, "name": "cell"}]
    assert masks_of(coco) == [(1, 0, (CELLS // 255).tolist())]
    assert f"masks: the masks hold the values {read_as}" in caplog.text


def test_255_beside_1_is_ignored_whichever_mask_has_it(tmp_path):
    save_pair(tmp_path, "a", np.array([[0, 255]], np.uint8))
    save_pair(tmp_path, "b", np.array([[0, 1]], np.uint8))
    coco = convert(tmp_path)
    assert masks_of(coco, 1) == [(1, 1, [[0, 1]])]
    assert masks_of(coco, 2) == [(1, 0, [[0, 1]])]
    assert coco["categories"] == [{"id": 1, "name": "foreground"}]


def test_a_value_to_ignore_beside_binary_ones(tmp_path):
    save_pair(tmp_path, "a", np.array([[0, 255, 128]], np.uint8))
    assert masks_of(convert(tmp_path, ignore=128)) == [(1, 0, [[0, 1, 0]]), (1, 1, [[0, 0, 1]])]
    save_pair(tmp_path, "a", np.array([[0, 255, 1]], np.uint8))
    with pytest.raises(FormatError, match=r"masks: the values \[0, 1, 255\] are not those of bin"):
        convert(tmp_path, background=255)


def test_colours(tmp_path):
    colours = np.array([[[0, 0, 0], [128, 0, 0]], [[0, 0, 128], [9, 9, 9]]], np.uint8)
    save_pair(tmp_path, "a", colours)
    classes = {"red": [128, 0, 0], "blue": [0, 0, 128]}
    expected = [(1, 0, [[0, 1], [0, 0]]), (2, 0, [[0, 0], [1, 0]]), (1, 1, [[0, 0], [0, 1]])]
    assert masks_of(convert(tmp_path, classes=classes, ignore=[9, 9, 9])) == expected
    text = r"a\.png: holds values without meaning: \[9, 9, 9\] \(1 pixels\); valid are \[0, 0, 0\]"
    with pytest.raises(FormatError, match=text):
        convert(tmp_path, classes=classes)
    # The same as palette: its colours count, unless classes are given by index.
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 128, 9, 9, 9])
    palette.save(tmp_path / "masks" / "a.png")
    assert masks_of(convert(tmp_path, classes=classes, ignore=[9, 9, 9])) == expected
    assert masks_of(convert(tmp_path, classes={"red": 1, "blue": 2}, ignore=3)) == expected


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ({}, {}, "classes must name at least one class"),
        ({"a": 1, "b": [0, 0, 1]}, {}, "give values or colours"),
        ({"a": [0, 0, 1]}, {"ignore": 255}, "give values or colours"),
        ({"a": 1, "b": 1}, {}, r"classes\['b'\] and classes\['a'\] have one value, 1"),
        ({"a": 1}, {"background": 1}, r"background and classes\['a'\] have one value, 1"),
        ({"a": 1}, {"ignore": 0, "background": 0}, "ignore and background have one value, 0"),
        ({"a": -1}, {}, r"classes\['a'\] must be a value from 0 or a colour .* got -1"),
        ({"a": True}, {}, "must be a value from 0 .* got True"),
        ({"a": [0, 0, 256]}, {}, r"must be .* got \[0, 0, 256\]"),
        ({"a": [0, 0]}, {}, r"must be .* got \[0, 0\]"),
        ({"a": "red"}, {}, "must be .* got 'red'"),
    ],
)
def test_meanings_that_contradict_each_other(tmp_path, classes, options, message):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, classes=classes, **options)


def test_a_value_that_is_no_class(tmp_path):
    save_pair(tmp_path, "a", np.array([[0, 1, 9, 9]], np.uint8))
    text = (
        r"a\.png: holds values without meaning: 9 \(2 pixels\); valid are 0 = background, "
        r"1 = cell, 255 = ignored; name it in `classes` or as `ignore`$"
    )
    with pytest.raises(FormatError, match=text):
        convert(tmp_path, classes={"cell": 1})
    with pytest.raises(
        FormatError, match=r"a\.png: .* 9 \(2 pixels\); without `classes` masks must"
    ):
        convert(tmp_path)


def test_smoothed_masks_are_refused(tmp_path):
    save_pair(tmp_path, "a", np.linspace(0, 255, 60).astype(np.uint8).reshape(6, 10))
    with pytest.raises(FormatError, match=r"a\.png: .*smoothing, resizing or JPEG leave in a mask"):
        convert(tmp_path)
    Image.fromarray(CELLS).save(tmp_path / "masks" / "a.png", format="JPEG")
    with pytest.raises(ImageError, match=r"a\.png: JPEG does not keep label values"):
        convert(tmp_path)
    with pytest.raises(ImageError, match=r"a\.png: JPEG does not keep label values"):
        convert(tmp_path, classes={"red": [255, 0, 0]})


def test_a_set_without_any_class_is_refused(tmp_path):
    save_pair(tmp_path, "a", np.zeros((2, 3), np.uint8))
    save_pair(tmp_path, "b", np.zeros((2, 3), np.uint8))
    for options in ({}, {"classes": {"cell": 1}}, {"classes": {"red": [255, 0, 0]}}):
        with pytest.raises(FormatError, match=r"masks: all masks are background"):
            convert(tmp_path, **options)
    save_pair(tmp_path, "b", CELLS)  # of another encoding: 255 is to be ignored
    with pytest.raises(FormatError, match=r"all masks are background: .* 255 = ignored"):
        convert(tmp_path, classes={"cell": 1})


def test_a_mask_of_another_size_is_refused(tmp_path):
    save_pair(tmp_path, "a", CELLS)
    Image.fromarray(CELLS.T.copy()).save(tmp_path / "masks" / "a.png")
    with pytest.raises(FormatError, match=r"a\.png: 3x2 \(height x width\), but .* has 2x3"):
        convert(tmp_path)


def test_suffix_and_progress(tmp_path):
    for name in "ab":
        save_pair(tmp_path, name, CELLS, suffix="_mask")
    seen = []
    coco = convert(tmp_path, mask_suffix="_mask", on_progress=lambda *done: seen.append(done))
    assert [i["file_name"] for i in coco["images"]] == ["a.png", "b.png"]
    assert seen == [(1, 2), (2, 2)]


def save_stacks(root: Path, pages: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Stacks named as those of the ISBI 2012 challenge."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (pages, 5, 7)).astype(np.uint16)
    masks = (rng.random((pages, 5, 7)) < 0.5).astype(np.uint8) * 255
    tifffile.imwrite(root / "train-volume.tif", images, photometric="minisblack")
    tifffile.imwrite(root / "train-labels.tif", masks, photometric="minisblack")
    return images, masks


def test_stacks_become_samples_page_by_page(tmp_path):
    images, masks = save_stacks(tmp_path)
    coco = semantic_png.read(tmp_path / "train-volume.tif", tmp_path / "train-labels.tif")
    names = [i["file_name"] for i in coco["images"]]
    assert names == [f"train-volume.tif#page={i:02d}" for i in range(12)]
    val = take_fold(coco, folds=4, index=1, part="val")
    assert [i["file_name"][-2:] for i in val["images"]] == ["01", "05", "09"]
    root = semantic_png.image_root(tmp_path / "train-volume.tif")
    assert root == semantic_png.image_root(tmp_path) == tmp_path
    index = build_index(val, root, source="stack", need_masks=True)
    assert index.defects == []
    dataset = DetectionDataset(
        index.records, Compose([]), seed=0, with_masks=True, channels=1, bits16="keep"
    )
    for i, page in enumerate((1, 5, 9)):
        sample = dataset[SampleKey(0, i)]
        assert sample.image.dtype == torch.uint16
        np.testing.assert_array_equal(sample.image.numpy(), images[page][None])
        (code,) = sample.target.masks.segmentations
        np.testing.assert_array_equal(coco_mask.decode(code) * 255, masks[page])


def test_pages_of_an_image_with_one_mask_are_its_channels(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (4, 2, 3)).astype(np.uint8)
    save_pair(tmp_path, "a", CELLS)
    (tmp_path / "images" / "a.png").unlink()
    tifffile.imwrite(tmp_path / "images" / "a.tif", stored, photometric="minisblack")
    coco = convert(tmp_path)
    assert [i["file_name"] for i in coco["images"]] == ["a.tif"]
    index = build_index(coco, tmp_path / "images", source="masks", need_masks=True)
    wanted = {"seed": 0, "with_masks": True}
    dataset = DetectionDataset(index.records, Compose([]), **wanted, channels=4)
    np.testing.assert_array_equal(dataset[SampleKey(0, 0)].image.numpy(), stored)
    with pytest.raises(ImageError, match=r"a\.tif: has 4 pages, but model\.image_channels is 3"):
        DetectionDataset(index.records, Compose([]), **wanted)[SampleKey(0, 0)]


def test_stacks_of_unequal_length_are_refused(tmp_path):
    images, _ = save_stacks(tmp_path)
    tifffile.imwrite(tmp_path / "train-volume.tif", images[:9], photometric="minisblack")
    with pytest.raises(FormatError, match=r"labels\.tif: has 12 pages, but its image .* has 9"):
        semantic_png.read(tmp_path / "train-volume.tif", tmp_path / "train-labels.tif")


def test_a_page_of_no_file_is_missing_and_a_page_too_many_unreadable(tmp_path):
    save_stacks(tmp_path)
    coco = semantic_png.read(tmp_path / "train-volume.tif", tmp_path / "train-labels.tif")
    for image, name in zip(
        coco["images"], ["none.tif#page=0", "../train-volume.tif#page=0"], strict=False
    ):
        image["file_name"] = name
    coco["images"][2]["file_name"] = "train-volume.tif#page=12"
    index = build_index(coco, tmp_path, source="stack")
    assert sorted(d.image_id for d in index.defects if d.severity.value == "error") == [1, 2]
    dataset = DetectionDataset(
        index.records, Compose([]), seed=0, with_masks=False, channels=1, bits16="stretch"
    )
    assert dataset[SampleKey(0, 1)].image.dtype == torch.uint8
    with pytest.raises(ImageError, match=r"train-volume\.tif#page=12: has no page 12: .* 0 to 11"):
        dataset[SampleKey(0, 0)]


@pytest.mark.real_data
def test_isbi2012(real_data, caplog):
    root = real_data / "isbi2012_em" / "train"
    with caplog.at_level(logging.INFO):
        coco = semantic_png.read(root / "image", root / "label", category="cell")
    assert "{0, 255}: read as 0 = background, 255 = cell" in caplog.text
    assert len(coco["images"]) == len(coco["annotations"]) == 30
    for image, annotation in list(zip(coco["images"], coco["annotations"], strict=True))[::7]:
        truth = np.asarray(Image.open(root / "label" / image["file_name"])) == 255
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), truth)
        assert annotation["area"] == truth.sum()


@pytest.mark.real_data
def test_instance_ids_are_no_classes(real_data):
    root = real_data / "dsb2018_256"
    with pytest.raises(FormatError, match=r"labels.*\.png: holds values without meaning: 2 \("):
        semantic_png.read(root / "images", root / "labels")
