import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from instseg.data.folds import take_fold
from instseg.data.formats import FormatError, instance_png
from instseg.data.image_io import ImageError
from instseg.ops.label_images import label_rles


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def save_pair(root: Path, name: str, labels: np.ndarray, suffix: str = "") -> None:
    save(root / "images" / f"{name}.png", np.zeros((*labels.shape, 3), np.uint8))
    save(root / "masks" / f"{name}{suffix}.png", labels)


def labels_of(coco: dict, image_id: int, shape: tuple[int, int]) -> list[np.ndarray]:
    annotations = [a for a in coco["annotations"] if a["image_id"] == image_id]
    return [coco_mask.decode(a["segmentation"]).reshape(shape) for a in annotations]


def test_hand_worked_masks(tmp_path):
    labels = np.array(
        [
            [0, 7, 7, 0, 0],
            [0, 7, 7, 0, 2],
            [0, 0, 0, 0, 2],
            [7, 0, 0, 0, 0],
        ],
        np.uint8,
    )
    save_pair(tmp_path, "b", labels)
    save_pair(tmp_path, "a/nested", np.zeros((3, 2), np.uint8))
    coco = instance_png.read(tmp_path / "images", tmp_path / "masks", category="nucleus")
    coco = json.loads(json.dumps(coco))
    assert coco["categories"] == [{"id": 1, "name": "nucleus"}]
    assert coco["images"] == [
        {"id": 1, "file_name": "a/nested.png", "height": 3, "width": 2},
        {"id": 2, "file_name": "b.png", "height": 4, "width": 5},
    ]
    two, seven = coco["annotations"]
    assert (two["id"], two["image_id"], two["category_id"], two["iscrowd"]) == (1, 2, 1, 0)
    assert (two["bbox"], two["area"]) == ([4, 1, 1, 2], 2)
    assert (seven["id"], seven["bbox"], seven["area"]) == (2, [0, 0, 3, 4], 5)
    masks = labels_of(coco, 2, (4, 5))
    np.testing.assert_array_equal(masks[0], labels == 2)
    np.testing.assert_array_equal(masks[1], labels == 7)


@pytest.mark.parametrize("seed", range(8))
def test_label_rles_equal_encoding_one_by_one(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 2))
    labels = rng.choice([0, 1, 2, 300, 70_000], size=shape).astype(np.int64)
    found = dict(label_rles(labels))
    assert list(found) == [i for i in np.unique(labels).tolist() if i != 0]
    for instance, code in found.items():
        expected = coco_mask.encode(np.asfortranarray(labels == instance, dtype=np.uint8))
        assert code == expected


def test_label_rles_of_one_instance_everywhere_and_of_none():
    (everywhere,) = label_rles(np.full((3, 4), 5))
    assert coco_mask.decode(everywhere[1]).sum() == 12
    assert list(label_rles(np.zeros((3, 4), np.int32))) == []


def test_sixteen_bit_ids_do_not_collide(tmp_path):
    labels = np.zeros((4, 4), np.uint16)
    labels[0, 0], labels[3, 3] = 1, 257  # equal in their low byte
    save_pair(tmp_path, "a", labels)
    coco = instance_png.read(tmp_path / "images", tmp_path / "masks")
    assert [a["bbox"] for a in coco["annotations"]] == [[0, 0, 1, 1], [3, 3, 1, 1]]
    assert coco["categories"][0]["name"] == "object"


def test_mask_suffix_pairs_and_progress_counts(tmp_path):
    for name in ("x", "y"):
        save_pair(tmp_path, name, np.ones((2, 2), np.uint8), suffix="_mask")
    seen: list[tuple[int, int]] = []
    coco = instance_png.read(
        tmp_path / "images",
        tmp_path / "masks",
        mask_suffix="_mask",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [i["file_name"] for i in coco["images"]] == ["x.png", "y.png"]
    assert seen == [(1, 2), (2, 2)]


def test_unpaired_files_are_named(tmp_path):
    save_pair(tmp_path, "both", np.ones((2, 2), np.uint8))
    save(tmp_path / "images" / "lonely.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(FormatError, match=r"1 images without a mask .*: lonely\.png"):
        instance_png.read(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "images" / "lonely.png").unlink()
    save(tmp_path / "masks" / "orphan.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(FormatError, match=r"1 masks without an image .*: orphan\.png"):
        instance_png.read(tmp_path / "images", tmp_path / "masks")


def test_a_mask_without_the_suffix_is_named(tmp_path):
    save_pair(tmp_path, "x", np.ones((2, 2), np.uint8), suffix="_mask")
    save(tmp_path / "masks" / "x.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(FormatError, match=r"x\.png: its name does not end in '_mask'"):
        instance_png.read(tmp_path / "images", tmp_path / "masks", mask_suffix="_mask")


def test_two_images_of_one_name_are_refused(tmp_path):
    save_pair(tmp_path, "x", np.ones((2, 2), np.uint8))
    save(tmp_path / "images" / "x.jpg", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(FormatError, match=r"x\.jpg and x\.png have one name"):
        instance_png.read(tmp_path / "images", tmp_path / "masks")


def test_a_mask_of_another_size_is_refused(tmp_path):
    save(tmp_path / "images" / "a.png", np.zeros((3, 5, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", np.zeros((5, 3), np.uint8))
    with pytest.raises(FormatError, match=r"a\.png: 5x3 \(height x width\), but .* has 3x5"):
        instance_png.read(tmp_path / "images", tmp_path / "masks")


def test_an_unreadable_mask_is_named(tmp_path):
    save(tmp_path / "images" / "a.png", np.zeros((3, 5, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ImageError, match=r"masks.a\.png"):
        instance_png.read(tmp_path / "images", tmp_path / "masks")


@pytest.mark.real_data
def test_pennfudan(real_data):
    root = real_data / "pennfudan"
    coco = instance_png.read(
        root / "images", root / "masks", category="person", mask_suffix="_mask"
    )
    assert len(coco["images"]) == 170
    assert len(coco["annotations"]) == 423
    assert len(take_fold(coco, folds=5, index=0, part="val")["images"]) == 34
    assert len(take_fold(coco, folds=5, index=0, part="train")["images"]) == 136
    # The example in the data set's readme: 559x536, boxes given from 1 and inclusive.
    assert coco["images"][0]["file_name"] == "FudanPed00001.jpg"
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == (559, 536)
    assert [a["bbox"] for a in coco["annotations"][:2]] == [
        [159, 181, 143, 250],
        [419, 170, 116, 316],
    ]
    for image in coco["images"][::20]:
        stem = Path(image["file_name"]).stem
        labels = cv2.imread(str(root / "masks" / f"{stem}_mask.png"), cv2.IMREAD_UNCHANGED)
        masks = labels_of(coco, image["id"], labels.shape)
        np.testing.assert_array_equal(sum((k + 1) * m for k, m in enumerate(masks)), labels)


@pytest.mark.real_data
def test_dsb2018(real_data):
    root = real_data / "dsb2018_256"
    coco = instance_png.read(root / "images", root / "labels", category="nucleus")
    assert len(coco["images"]) == 334
    assert len(coco["annotations"]) == 9543
    counts = {e["id"]: e["n"] for e in json.loads((root / "index.json").read_text())}
    names = {i["id"]: Path(i["file_name"]).stem for i in coco["images"]}
    found = dict.fromkeys(counts, 0)
    for annotation in coco["annotations"]:
        found[names[annotation["image_id"]]] += 1
    assert found == counts
