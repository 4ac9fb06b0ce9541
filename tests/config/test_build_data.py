"""From the `data` section to records and transforms."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg.config.build_data import (
    build_read_mixes,
    build_transformed_mixes,
    build_transforms,
    read_index,
)
from instseg.data import transforms

from .test_build import load


def test_transforms(tmp_path: Path) -> None:
    sections = load(
        tmp_path,
        "data.train_transforms=[{name: resize_shortest_edge, sizes: [8, 9], max_size: 10}, "
        "{name: resize, height: 5, width: 6}, {name: horizontal_flip, p: 0.25}, "
        "{name: large_scale_jitter, height: 7, width: 8, min_scale: 0.5, max_scale: 1.5}, "
        "{name: random_crop, min_scale: 0.3, min_visibility: 0.1}, "
        "{name: photometric_distort, p: 0.75}]",
    ).data.train_transforms
    edge, resize, flip, jitter, crop, colour = build_transforms(sections).transforms
    assert isinstance(edge, transforms.ResizeShortestEdge)
    assert (edge.sizes, edge.max_size) == ((8, 9), 10)
    assert isinstance(resize, transforms.Resize)
    assert (resize.sizes, resize.antialias) == (((5, 6),), True)
    assert isinstance(flip, transforms.RandomHorizontalFlip)
    assert flip.p == 0.25
    assert isinstance(jitter, transforms.LargeScaleJitter)
    assert (jitter.size, jitter.min_scale, jitter.max_scale) == ((7, 8), 0.5, 1.5)
    assert isinstance(crop, transforms.RandomCrop)
    assert (crop.min_scale, crop.min_visibility) == (0.3, 0.1)
    assert isinstance(colour, transforms.PhotometricDistort)
    assert colour.p == 0.75


def test_transforms_of_the_one_shot_detectors(tmp_path: Path) -> None:
    sections = load(
        tmp_path,
        "data.train_transforms=[{name: resize, sizes: [[5, 6], [7, 8]], antialias: false}, "
        "{name: letterbox, height: 9, width: 10}, "
        "{name: letterbox, sizes: [[5, 6]], antialias: true}, {name: hsv_jitter, value: 7}, "
        "{name: expand, p: 0.25, max_scale: 3}, "
        "{name: iou_crop, min_scale: 0.1, min_ious: [0.4], max_aspect_ratio: 3}]",
    ).data.train_transforms
    resize, box, smooth, hsv, expand, crop = build_transforms(sections).transforms
    assert isinstance(resize, transforms.Resize)
    assert (resize.sizes, resize.antialias) == (((5, 6), (7, 8)), False)
    assert isinstance(box, transforms.Letterbox)
    assert (box.sizes, box.antialias) == (((9, 10),), False)
    assert (smooth.sizes, smooth.antialias) == (((5, 6),), True)
    assert isinstance(hsv, transforms.HsvJitter)
    assert hsv.amounts == (5, 30, 7)
    assert isinstance(expand, transforms.Expand)
    assert (expand.p, expand.max_scale) == (0.25, 3)
    assert isinstance(crop, transforms.IoUCrop)
    assert (crop.min_scale, crop.min_ious, crop.max_aspect_ratio) == (0.1, (0.4,), 3)


def test_mixes(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        "data.mosaic={p: 0.5, height: 32, width: 64, min_scale: 0.5, max_scale: 1.5, "
        "max_shift: 0.2, min_visibility: 0.3}",
        "data.mixup={p: 0.25, min_scale: 0.75, max_scale: 1.25, min_visibility: 0.4}",
        "data.copy_paste={p: 0.125}",
    ).data
    mosaic, mixup = build_read_mixes(data)
    assert isinstance(mosaic, transforms.Mosaic)
    assert (mosaic.size, mosaic.p, mosaic.max_shift) == ((32, 64), 0.5, 0.2)
    assert (mosaic.min_scale, mosaic.max_scale, mosaic.min_visibility) == (0.5, 1.5, 0.3)
    assert isinstance(mixup, transforms.MixUp)
    assert (mixup.p, mixup.min_visibility) == (0.25, 0.4)
    assert (mixup.min_scale, mixup.max_scale) == (0.75, 1.25)
    (paste,) = build_transformed_mixes(data)
    assert isinstance(paste, transforms.SimpleCopyPaste)
    assert paste.p == 0.125
    none = load(tmp_path).data
    assert build_read_mixes(none) == build_transformed_mixes(none) == []


SQUARE = [10, 6, 20, 6, 20, 16, 10, 16]


def write_formats(root: Path) -> dict[str, str]:
    """One image of 30 x 40 with a square "cat", in every format; returns the config sections."""
    folder = root / "JPEGImages"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        assert cv2.imwrite(str(folder / name), np.zeros((30, 40, 3), np.uint8))
    coco = {
        "images": [
            {"id": 3, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 4, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 7, "bbox": [10, 6, 10, 10], "iscrowd": 0,
             "area": 100, "segmentation": [SQUARE]},
        ],
    }  # fmt: skip
    (root / "coco.json").write_text(json.dumps(coco))

    (root / "masks").mkdir()
    for name, value in (("a", 9), ("b", 0)):
        mask = np.zeros((30, 40), np.uint8)
        mask[6:16, 10:20] = value
        assert cv2.imwrite(str(root / "masks" / f"{name}_mask.png"), mask)

    (root / "Annotations").mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>7</ymin><xmax>20</xmax><ymax>16</ymax></bndbox>"
    for name, objects in (("a", f"<object><name>cat</name>{box}</object>"), ("b", "")):
        size = "<size><width>40</width><height>30</height></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)

    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text(f"0 {15 / 40} {11 / 30} {10 / 40} {10 / 30}\n")
    (root / "labels" / "b.txt").write_text("")

    points = np.reshape(SQUARE, (-1, 2)).tolist()
    for name in ("a", "b"):
        shapes = [{"label": "cat", "points": points, "shape_type": "polygon"}]
        content = {"imagePath": f"{name}.png", "imageHeight": 30, "imageWidth": 40}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content | {"shapes": shapes if name == "a" else []}))

    polygon = {"name": "polygon", "all_points_x": SQUARE[::2], "all_points_y": SQUARE[1::2]}
    regions = [{"shape_attributes": polygon, "region_attributes": {"kind": "cat"}}]
    via = {
        f"{name}.png": {
            "filename": f"{name}.png",
            "size": 1,
            "regions": regions if name == "a" else [],
        }
        for name in ("a", "b")
    }
    (root / "via.json").write_text(json.dumps(via))
    return {
        "coco": f"{{format: coco, annotations: {root}/coco.json, images: {folder}}}",
        "instance_png": f"{{format: instance_png, images: {folder}, masks: {root}/masks, "
        "mask_suffix: _mask, category: cat}",
        "voc": f"{{format: voc, root: {root}}}",
        "yolo": f"{{format: yolo, images: {folder}, labels: {root}/labels, names: [cat]}}",
        "labelme": f"{{format: labelme, folder: {folder}}}",
        "via": f"{{format: via, file: {root}/via.json, images: {folder}, attribute: kind}}",
    }


@pytest.mark.parametrize("format_", ["coco", "instance_png", "voc", "yolo", "labelme", "via"])
def test_every_format_gives_the_same_records(
    tmp_path: Path, format_: str, caplog: pytest.LogCaptureFixture
) -> None:
    sections = write_formats(tmp_path)
    config = load(tmp_path, f"data.train={sections[format_]}")
    has_masks = format_ not in ("voc", "yolo")
    with caplog.at_level(logging.INFO):
        index = read_index(config.data.train, need_masks=has_masks)
    assert "2 images, 1 annotations, 1 classes; none left out" in caplog.text
    assert index.class_names == ["cat"]
    first, second = index.records
    assert first.boxes == pytest.approx(np.array([[10, 6, 20, 16]]), abs=1e-4)
    assert len(second.labels) == 0
    assert first.path == (tmp_path / "JPEGImages" / "a.png").resolve()
    assert (first.segmentations is not None) == has_masks


def test_a_fold(tmp_path: Path) -> None:
    section = write_formats(tmp_path)["coco"]
    parts = {}
    for part in ("train", "val"):
        fold = f"data.train.fold={{folds: 2, index: 1, part: {part}}}"
        index = read_index(
            load(tmp_path, f"data.train={section}", fold).data.train, need_masks=True
        )
        parts[part] = [record.path.name for record in index.records]
    assert parts == {"train": ["a.png"], "val": ["b.png"]}
