import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from instseg.data import synthetic
from instseg.data.synthetic import CLASSES, SHAPES, Scene, generate_shapes, render_scene

IMAGES = 60
SEED = 3
SIZE = (96, 128)
MAX_OBJECTS = 8


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    path = generate_shapes(root, images=IMAGES, size=SIZE, seed=SEED, max_objects=MAX_OBJECTS)
    assert path == root / "annotations.json"
    return root, json.loads(path.read_text())


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(SEED, i, SIZE, MAX_OBJECTS) for i in range(IMAGES)]


@pytest.fixture(scope="module")
def pairs(data_set, scenes):
    """(annotation, true mask, true label) of every object."""
    by_image = defaultdict(list)
    for annotation in data_set[1]["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    found = []
    for i, scene in enumerate(scenes):
        annotations = by_image[i + 1]
        found += zip(annotations, scene.masks, scene.labels, strict=True)
    return found


def rasterise(segmentation) -> np.ndarray:
    if isinstance(segmentation, list):
        codes = coco_mask.frPyObjects(segmentation, *SIZE)
        return coco_mask.decode(coco_mask.merge(codes)).astype(bool)
    return coco_mask.decode(segmentation).astype(bool)


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate_shapes(tmp_path / name, images=6, size=(64, 64), seed=seed)
    first = files(tmp_path / "a")
    assert len(first) == 7
    assert first == files(tmp_path / "b")
    third = files(tmp_path / "c")
    assert all(first[name] != third[name] for name in first)


def test_an_image_does_not_depend_on_their_number(tmp_path):
    generate_shapes(tmp_path / "few", images=3, size=(64, 64), seed=5)
    generate_shapes(tmp_path / "many", images=5, size=(64, 64), seed=5)
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    assert all(few[name] == many[name] for name in few if name.endswith(".png"))


def test_the_files_hold_the_rendered_images(data_set, scenes):
    root, coco = data_set
    assert [record["id"] for record in coco["images"]] == list(range(1, IMAGES + 1))
    for record, scene in zip(coco["images"], scenes, strict=True):
        image = cv2.imread(str(root / "images" / record["file_name"]), cv2.IMREAD_UNCHANGED)
        assert (record["height"], record["width"]) == SIZE
        np.testing.assert_array_equal(image[..., ::-1], scene.image)
    assert sorted(p.name for p in (root / "images").iterdir()) == [
        record["file_name"] for record in coco["images"]
    ]


def test_every_class_occurs_and_ids_are_unique(data_set, pairs):
    coco = data_set[1]
    assert [(c["id"], c["name"]) for c in coco["categories"]] == list(enumerate(CLASSES, 1))
    assert {a["category_id"] for a in coco["annotations"]} == set(range(1, len(CLASSES) + 1))
    ids = [a["id"] for a in coco["annotations"]]
    assert len(set(ids)) == len(ids) == len(pairs)
    assert all(a["category_id"] == label + 1 for a, _, label in pairs)


def test_boxes_and_areas_are_those_of_the_visible_pixels(pairs):
    for annotation, mask, _ in pairs:
        rows, columns = np.nonzero(mask)
        x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == 0


def test_segmentations_are_exactly_the_visible_pixels(pairs):
    for annotation, mask, _ in pairs:
        np.testing.assert_array_equal(rasterise(annotation["segmentation"]), mask)


def test_holes_are_rle_and_split_objects_have_several_polygons(pairs):
    holes = several = 0
    for annotation, mask, _ in pairs:
        segmentation = annotation["segmentation"]
        # A hole is background that cannot be reached from outside the image in steps of one
        # pixel along an axis.
        outside, _ = cv2.connectedComponents(
            np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=4
        )
        assert isinstance(segmentation, dict) == (outside > 2)
        if outside > 2:
            holes += 1
            assert isinstance(segmentation["counts"], str)
            assert segmentation["size"] == list(SIZE)
        else:
            parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            assert len(segmentation) == parts - 1
            several += parts > 2
    assert holes > 10
    assert several > 3


def test_polygons_give_back_any_mask_without_holes():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(500):
        mask = np.zeros(SIZE, bool)
        mask[40:52, 60:74] = rng.random((12, 14)) < rng.uniform(0.1, 0.4)
        polygons = synthetic._polygons(mask) if mask.any() else []
        if polygons:
            np.testing.assert_array_equal(rasterise(polygons), mask)
            compared += 1
    assert compared > 200


def test_visible_masks_are_disjoint_and_never_tiny(scenes):
    for scene in scenes:
        if scene.masks:
            assert np.sum(scene.masks, axis=0).max() == 1
            assert min(mask.sum() for mask in scene.masks) >= synthetic.MIN_VISIBLE_PIXELS


def test_too_hidden_objects_are_left_out(monkeypatch):
    """At a demand of 95 % visible, only whole objects remain, and they are those drawn."""
    monkeypatch.setattr(synthetic, "MIN_VISIBLE_FRACTION", 0.95)
    drawn = []
    paint = synthetic._paint

    def spy(rng, canvas, sprite, background):
        drawn.append(sprite)
        paint(rng, canvas, sprite, background)

    monkeypatch.setattr(synthetic, "_paint", spy)
    for i in range(10):
        drawn.clear()
        scene = render_scene(SEED, i, SIZE, MAX_OBJECTS)
        assert len(drawn) == len(scene.masks)
        for sprite, mask in zip(reversed(drawn), scene.masks, strict=True):
            whole = np.count_nonzero(sprite.coverage >= 0.5)
            assert mask.sum() >= 0.95 * whole


def test_objects_overlap_and_some_images_are_empty():
    scenes = [render_scene(1, i, (64, 64), 6) for i in range(200)]
    empty = sum(not scene.masks for scene in scenes)
    assert 1 <= empty <= 15
    # Neighbouring pixels of two objects mean that one lies over the other.
    touching = 0
    for scene in scenes:
        for i, first in enumerate(scene.masks):
            grown = cv2.dilate(first.astype(np.uint8), np.ones((3, 3), np.uint8))
            touching += any((grown & second).any() for second in scene.masks[i + 1 :])
    assert touching > 50


def grid(side: int = 200) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    return u, v


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disk", 0.81 * np.pi),
        ("square", 2.0),
        ("triangle", 0.75 * np.sqrt(3)),
        ("star", 5 * 0.45 * np.sin(np.pi / 5)),
        ("ring", 0.65 * np.pi),
        ("cross", 2 * 1.8 * 0.6 - 0.6**2),
    ],
)
def test_shapes_have_the_area_of_their_formula(name, area):
    inside = SHAPES[name](*grid())
    assert inside.mean() * 4 == pytest.approx(area, rel=0.02)
    assert inside[100, 100] == (name != "ring")


def test_an_unoccluded_ring_has_a_hole():
    rings = []
    for i in range(60):
        scene = render_scene(7, i, SIZE, 1)
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            border = mask[[0, -1]].any() or mask[:, [0, -1]].any()
            if CLASSES[label] == "ring" and not border:
                rings.append(mask)
    assert len(rings) >= 3
    for mask in rings:
        rows, columns = np.nonzero(mask)
        assert not mask[round(rows.mean()), round(columns.mean())]
        assert synthetic._polygons(mask) == []


def test_mean_colour_does_not_give_the_class_away():
    """No class differs from the mean of all by more than chance allows."""
    colours = defaultdict(list)
    for i in range(150):
        scene = render_scene(11, i, (64, 64), 6)
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            colours[label].append(scene.image[mask].mean(axis=0))
    everything = np.concatenate(list(colours.values()))
    for values in colours.values():
        error = everything.std(axis=0) / np.sqrt(len(values))
        assert (np.abs(np.mean(values, axis=0) - everything.mean(axis=0)) < 4 * error).all()


def test_an_interrupted_run_leaves_no_annotations(tmp_path, monkeypatch):
    generate_shapes(tmp_path, images=2, size=(64, 64), seed=1)
    render = synthetic.render_scene

    def interrupted(seed, index, size, max_objects):
        if index == 1:
            raise KeyboardInterrupt
        return render(seed, index, size, max_objects)

    monkeypatch.setattr(synthetic, "render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path, images=2, size=(64, 64), seed=2)
    assert not (tmp_path / "annotations.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 0, "seed": 0}, "images=0"),
        ({"images": 1, "seed": -1}, "seed=-1"),
        ({"images": 1, "seed": 0, "max_objects": 0}, "max_objects=0"),
        ({"images": 1, "seed": 0, "size": (31, 160)}, "at least 32"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_shapes(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
