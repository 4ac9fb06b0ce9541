"""The report from scores to page: of published results, and of a generated set with images."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from instseg.cli import report
from instseg.cli.report import write_evaluation_report
from instseg.data.synthetic import generate_shapes
from instseg.evaluation.coco import score
from instseg.evaluation.ground_truth import load_ground_truth
from instseg.evaluation.params import CocoParams
from instseg.evaluation.results import check_results, load_results
from instseg.evaluation.scores import BootstrapOptions
from instseg.ops import rle
from instseg.visualization.evaluation_picture import Image, Outcome, Shape, draw_outcomes

BOTH = ("bbox", "segm")
SIZE = (64, 96)
OPTIONS = BootstrapOptions(replicates=10)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images; only to be read."""
    root = tmp_path_factory.mktemp("small")
    generate_shapes(root, images=8, size=SIZE, seed=5, max_objects=5)
    return root


def detections(truth: Record) -> list[Record]:
    """Of each five objects one is missed, one shifted, one misnamed; and one invention in three."""
    found = []
    for i, annotation in enumerate(truth["annotations"]):
        code = annotation["segmentation"]
        if isinstance(code, list):
            code = rle.from_polygons([np.array(p).reshape(-1, 2) for p in code], SIZE)
        shift = 20 if i % 5 == 1 else 1
        category = 1 + annotation["category_id"] % 6 if i % 5 == 2 else annotation["category_id"]
        if i % 5:
            pixels = np.roll(rle.decode(code), shift, axis=1)
            found.append(record(annotation["image_id"], category, 0.6 + i / 200, pixels))
        if i % 3 == 0:
            pixels = np.zeros(SIZE, np.uint8)
            pixels[40:60, 5 : 20 + i % 7] = 1
            found.append(record(annotation["image_id"], 1, 0.55 + i / 200, pixels))
    return check_results(found, truth, BOTH)


def record(image_id: int, category_id: int, score: float, pixels: Image) -> Record:
    code = rle.encode(pixels)
    x1, y1, x2, y2 = rle.to_box(code)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": code,
    }


def write(
    folder: Path,
    truth: Record,
    records: list[Record],
    iou_types: Sequence[str] = BOTH,
    images: Mapping[int, Path] | None = None,
    params: CocoParams | None = None,
) -> Path:
    return write_evaluation_report(
        folder,
        truth,
        records,
        score(truth, records, iou_types, "instseg", params, OPTIONS),
        title="a model",
        ground_truth_name="val.json",
        results_name="dt.json",
        options=OPTIONS,
        images=images,
    )


def document(page: Path) -> Record:
    values: Record = json.loads(page.with_name("report.json").read_text())
    return values


def files(root: Path, truth: Record) -> dict[int, Path]:
    return {image["id"]: root / "images" / image["file_name"] for image in truth["images"]}


class Drawn(list[tuple[Image, list[Shape], dict[str, Any]]]):
    """All calls of `draw_outcomes`."""

    def __call__(self, image: Image, shapes: Sequence[Shape], **options: Any) -> Image:
        self.append((image, list(shapes), options))
        return draw_outcomes(image, shapes, **options)

    @property
    def whole(self) -> list[tuple[Image, list[Shape], dict[str, Any]]]:
        return [call for call in self if call[2]["around"] is None]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    calls = Drawn()
    monkeypatch.setattr(report, "draw_outcomes", calls)
    return calls


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time and are not looked at."""
    names = ("precision_recall", "errors", "calibration", "confusion", "sizes")
    monkeypatch.setattr(
        "instseg.visualization.report._write_figures", lambda *_: dict.fromkeys(names, "")
    )


@pytest.mark.real_data
@pytest.mark.parametrize("iou_type", BOTH)
def test_published_results(
    real_data: Path,
    iou_type: str,
    tmp_path: Path,
    drawn: Drawn,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    if iou_type == "segm":
        request.getfixturevalue("plain")
    gold = real_data / "coco_gold"
    truth = load_ground_truth(gold / "instances_val2014_100.json", (iou_type,))
    file = gold / f"instances_val2014_fake{iou_type}100_results.json"
    with caplog.at_level(logging.WARNING, "instseg"):
        page = write(tmp_path / "out", truth, load_results(file, truth, (iou_type,)), (iou_type,))
    assert page == tmp_path / "out" / "report.html"
    assert "drawn on gray" not in caplog.text  # nobody said where the images are
    section = document(page)["iou_types"][iou_type]
    pictures = section["pictures"]
    assert len(pictures) >= 16
    text = page.read_text()
    assert text.count('<img src="data:image/webp') == len(pictures) + len(section["label_errors"])
    kind = {"bbox": "box", "segm": "mask"}[iou_type]
    worst = pictures[0]["categories"][0]
    place = list(section["per_category"]).index(worst)
    row = re.search(rf'<tr id="{kind}-category-{place}">.*?</tr>', text, re.DOTALL)
    assert row is not None
    assert f'href="#{kind}-picture-0"' in row[0]
    assert {options["note"] for _, _, options in drawn.whole} == {"no image file"}
    assert_counts(pictures, drawn, {image["id"]: image for image in truth["images"]})


def assert_counts(pictures: list[Record], drawn: Drawn, images: Mapping[int, Record]) -> None:
    """What is drawn are as many objects found, false and missed as the document says."""
    for picture, (image, shapes, _) in zip(pictures, drawn.whole, strict=True):
        size = images[picture["image_id"]]
        assert image.shape[:2] == (size["height"], size["width"])
        counts = [sum(s.outcome is outcome for s in shapes) for outcome in Outcome]
        assert counts == [picture["tp"], picture["tp"], picture["fp"], picture["fn"]]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("iou_type", BOTH)
def test_pictures_show_the_document_on_the_images(
    small_set: Path,
    iou_type: str,
    tmp_path: Path,
    drawn: Drawn,
    caplog: pytest.LogCaptureFixture,
) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    records = detections(truth)
    paths = files(small_set, truth)
    with caplog.at_level(logging.WARNING, "instseg"):
        page = write(tmp_path, truth, records, (iou_type,), paths)
    assert caplog.text == ""
    section = document(page)["iou_types"][iou_type]
    pictures, errors = section["pictures"], section["label_errors"]
    assert min(sum(p[n] for p in pictures) for n in ("tp", "fp", "fn")) >= 3
    assert_counts(pictures, drawn, {image["id"]: image for image in truth["images"]})
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for picture, (image, shapes, _) in zip(pictures, drawn.whole, strict=True):
        assert (image == cv2.imread(str(paths[picture["image_id"]]))[..., ::-1]).all()
        own = [r for r in records if r["image_id"] == picture["image_id"]]
        labels = {f"{names[r['category_id']]} {r['score']:.2f}" for r in own}
        assert {s.label for s in shapes if s.outcome in (Outcome.FOUND, Outcome.FALSE)} <= labels
        assert all((s.mask is None) == (iou_type == "bbox") for s in shapes)
        named = {s.label.rsplit(" ", 1)[0] for s in shapes if s.outcome is Outcome.FALSE}
        named |= {s.label.removesuffix(" missed") for s in shapes if s.outcome is Outcome.MISSED}
        assert named == set(picture["categories"])
    around = [options["around"] for _, _, options in drawn if options["around"] is not None]
    assert sorted(around) == sorted(error["box"] for error in errors)
    assert len(errors) >= 1


@pytest.mark.usefixtures("plain")
def test_images_that_cannot_be_shown_are_counted_in_one_warning(
    small_set: Path, tmp_path: Path, drawn: Drawn, caplog: pytest.LogCaptureFixture
) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    records = detections(truth)
    shutil.copytree(small_set / "images", tmp_path / "images")
    paths = files(tmp_path, truth)
    shown = [p["image_id"] for p in pictures_of(write(tmp_path / "a", truth, records, BOTH, paths))]
    assert len(shown) >= 5
    paths[shown[0]].unlink()
    del paths[shown[1]]
    paths[shown[2]].write_bytes(paths[shown[2]].read_bytes()[:99])
    cv2.imwrite(str(paths[shown[3]]), np.zeros((30, 40, 3), np.uint8))
    drawn.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "instseg"):
        page = write(tmp_path / "b", truth, records, BOTH, paths)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "4 of the images shown are drawn on gray" in message
    for part in ("2 missing", "1 unreadable", "1 of another size", str(paths[shown[0]])):
        assert part in message
    blank = [image for image, _, options in drawn.whole if options["note"]]
    assert len(blank) == 2 * 4
    assert all(image.shape == (*SIZE, 3) and np.ptp(image) == 0 for image in blank)
    assert len(drawn.whole) > len(blank)
    assert "No picture" not in page.read_text()


def pictures_of(page: Path) -> list[Record]:
    pictures: list[Record] = document(page)["iou_types"]["bbox"]["pictures"]
    return pictures


def test_images_of_other_channels_and_16_bits_are_shown(
    small_set: Path, tmp_path: Path, drawn: Drawn, caplog: pytest.LogCaptureFixture
) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    # A camera of 16 bits that uses 12 of them; five channels; pages that are images, and channels.
    gray = rng.integers(100, 4096, (3, *SIZE)).astype(np.uint16)
    gray[:, 0, :2] = 100, 4095
    paths = files(tmp_path, truth)
    for i, (image_id, path) in enumerate(paths.items()):
        kind = i % 4
        if kind == 0:
            assert cv2.imwrite(str(path), gray[0])
        elif kind == 1:
            five = np.moveaxis(np.stack([*gray, *gray[:2]]), 0, 2)
            tifffile.imwrite(path, five, photometric="minisblack", planarconfig="contig")
        else:
            tifffile.imwrite(path, gray, photometric="minisblack")
        if kind == 3:
            paths[image_id] = path.with_name(f"{path.name}#page=1")
    with caplog.at_level(logging.WARNING, "instseg"):
        write(tmp_path / "report", truth, detections(truth), BOTH, paths)
    assert not caplog.records
    stretched = ((gray - 100.0) * (255 / 3995) + 0.5).astype(np.uint8)
    expected = {
        stretched[0].tobytes(): 0, np.moveaxis(stretched, 0, 2).tobytes(): 1,
        stretched[1].tobytes(): 3,
    }  # fmt: skip
    for image, _, options in drawn.whole:
        assert not options["note"]
        assert image.shape == (*SIZE, 3)
    shown = {expected[(i if np.ptp(i, axis=2).any() else i[..., 0]).tobytes()]
             for i, _, _ in drawn.whole}  # fmt: skip
    assert shown == {0, 1, 3}


def test_an_image_turned_by_its_camera_is_upright(
    small_set: Path, tmp_path: Path, drawn: Drawn, plain: None
) -> None:
    from PIL import Image as PillowImage

    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    paths = files(small_set, truth)
    for image_id, path in paths.items():
        exif = PillowImage.Exif()
        exif[0x0112] = 6  # turn a quarter clockwise
        turned = tmp_path / f"{image_id}.png"
        PillowImage.open(path).rotate(90, expand=True).save(turned, exif=exif)
        paths[image_id] = turned
    write(tmp_path / "out", truth, detections(truth), ("bbox",), paths)
    assert all(image.shape == (*SIZE, 3) for image, _, _ in drawn)
    assert all(np.ptp(image) > 0 for image, _, _ in drawn)


@pytest.mark.usefixtures("plain")
def test_an_image_of_unknown_size_is_as_large_as_its_boxes(tmp_path: Path, drawn: Drawn) -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10], "area": 200},
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    prepared = load_ground_truth(tmp_path / "gt.json", ("bbox",))
    far = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [90.0, 40.0, 9.5, 10.0]}
    write(tmp_path / "out", prepared, [far], ("bbox",))
    assert {image.shape for image, _, _ in drawn} == {(50, 100, 3)}


@pytest.mark.usefixtures("plain")
def test_a_suspect_outside_of_its_image_has_no_picture(
    small_set: Path, tmp_path: Path, drawn: Drawn
) -> None:
    truth = load_ground_truth(small_set / "annotations.json", ("bbox",))
    good = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "score": 0.8,
            "bbox": a["bbox"],
        }
        for a in truth["annotations"]
    ]
    far = good[0] | {"score": 0.99, "bbox": [500.0, 500.0, 20.0, 20.0]}
    page = write(tmp_path, truth, [*good, far], ("bbox",), files(small_set, truth))
    (error,) = document(page)["iou_types"]["bbox"]["label_errors"]
    assert error["box"] == [500, 500, 20, 20]
    assert "box 500.0, 500.0, 20.0, 20.0" in page.read_text()
    assert all(options["around"] is None for _, _, options in drawn)


@pytest.mark.usefixtures("plain")
def test_boundary_is_in_the_summary_and_not_alone(small_set: Path, tmp_path: Path) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    records = detections(truth)
    page = write(tmp_path / "a", truth, records, ("segm", "boundary"))
    assert '<th scope="col">Boundary</th>' in page.read_text()
    with pytest.raises(ValueError, match=r"needs scores of boxes or masks, got \('boundary',\)"):
        write(tmp_path / "b", truth, records, ("boundary",))


@pytest.mark.usefixtures("plain")
def test_a_class_agnostic_scoring_has_one_category(
    small_set: Path, tmp_path: Path, drawn: Drawn
) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    params = CocoParams(class_agnostic=True)
    page = write(tmp_path, truth, detections(truth), ("bbox",), params=params)
    assert document(page)["categories"] == ["all"]
    assert_counts(pictures_of(page), drawn, {image["id"]: image for image in truth["images"]})


@pytest.mark.usefixtures("plain")
def test_results_without_a_single_detection(small_set: Path, tmp_path: Path) -> None:
    truth = load_ground_truth(small_set / "annotations.json", BOTH)
    page = write(tmp_path, truth, [], BOTH, files(small_set, truth))
    assert all(p["tp"] == p["fp"] == 0 < p["fn"] for p in pictures_of(page))
