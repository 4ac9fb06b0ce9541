"""Records, ground truth and defects from columns against the same worked out record by record."""

import json
import multiprocessing
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instseg.data.coco import AnnotationError, load_coco, parse_segmentation
from instseg.data.columns import ColumnsError, open_columns, write_columns
from instseg.data.dataset import DetectionDataset
from instseg.data.defects import clipped_box
from instseg.data.index import CocoIndex, build_index
from instseg.data.json_stream import stream_coco
from instseg.data.mask_codes import PartKind
from instseg.data.records import Record, Records
from instseg.data.screening import screen
from instseg.data.transforms import Compose
from tests.data.exact import plain

SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 8.0, 2.0, 8.0]


def worked_out(coco: dict[str, Any], root: Path, *, need_masks: bool) -> list[Record]:
    """The records of a COCO dictionary whose image files are all there, one after the other."""
    kept = screen(coco, source="a.json", need_masks=need_masks).coco
    labels = sorted(category["id"] for category in kept["categories"])
    records = []
    for image in kept["images"]:
        size = image["height"], image["width"]
        own = [a for a in kept["annotations"] if a["image_id"] == image["id"]]
        boxes = [clipped_box(a["bbox"], size) for a in own]
        records.append(
            Record(
                image_id=image["id"],
                path=root.resolve() / image["file_name"],
                size=size,
                boxes=np.array(boxes, np.float32).reshape(-1, 4),
                labels=np.array([labels.index(a["category_id"]) for a in own], np.int64),
                is_crowd=np.array([a["iscrowd"] == 1 for a in own], np.bool_),
                annotation_ids=np.array([a["id"] for a in own], np.int64),
                segmentations=[parse_segmentation(a["segmentation"], size) for a in own]
                if need_masks
                else None,
            )
        )
    return records


def assert_same(index: CocoIndex, coco: dict[str, Any], root: Path, *, need_masks: bool) -> None:
    expected = worked_out(coco, root, need_masks=need_masks)
    assert [plain(r) for r in index.records] == [plain(r) for r in expected]
    screened = screen(coco, source="a.json", need_masks=need_masks)
    assert index.coco == screened.coco
    assert index.defects == screened.defects


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """Everything a mask can be, records that are left out, annotations in no order of images."""
    rng = random.Random(4)
    images = [
        {"id": 10 * i + 3, "width": 30 + i, "height": 20, "file_name": name}
        for i, name in enumerate(
            ("a.png", "sub/b.png", "stack.tif#page=1", "\u00fc.png", "stack.tif#page=0", "c.png")
        )
    ]
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "stack.tif", "\u00fc.png", "c.png"):
        (tmp_path / name).touch()
    annotations = []
    for i in range(60):
        image = images[rng.randrange(5)]
        pixels = image["width"] * 20
        crowd = {"size": [20, image["width"]], "counts": [5, 0, 7, i, pixels - 12 - i]}
        masks = [
            [SQUARE],
            [[1, 1, 2, 2], [v + 0.25 * i for v in SQUARE], [3.14, 2.72, 9.99, 2, 5, 17.01]],
            [[v + 1 / 3 for v in SQUARE]],
            [[-1000.5, -2.0, 3.0, 3.0, 12.0, 8.07]],
            [[-0.0, 0.0, 3.0, 3.0, 12.0, 8.0]],
            crowd,
            [[1, 2, 3]],
        ]
        annotations.append(
            {
                "id": 1000 - i,
                "image_id": image["id"],
                "category_id": rng.choice([4, 9]),
                "bbox": [rng.uniform(-2, 5), rng.randrange(4), rng.uniform(5, 40), 6],
                "area": rng.choice([None, 3, 7.25]),
                "iscrowd": int(i % 7 == 5),
                "segmentation": masks[i % 7],
            }
        )
    code = parse_segmentation({"size": [20, 30], "counts": [5, 5, 590]}, (20, 30))
    assert isinstance(code, dict)
    text = {"size": [20, 30], "counts": code["counts"].decode()}
    annotations.append({**annotations[0], "id": 1, "image_id": 3, "segmentation": text})
    annotations.append({**annotations[0], "id": 2, "image_id": 3, "segmentation": code})
    annotations.append({**annotations[0], "id": 3, "image_id": 77})
    categories = [{"id": 9, "name": "nut"}, {"id": 4, "name": "fig", "supercategory": "x"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("need_masks", [True, False])
def test_index_agrees_with_the_records_worked_out(
    coco: dict[str, Any], tmp_path: Path, need_masks: bool
) -> None:
    index = build_index(coco, tmp_path, source="a.json", need_masks=need_masks)
    assert index.kept_annotations < index.total_annotations == 63
    assert_same(index, coco, tmp_path, need_masks=need_masks)
    if need_masks:  # every way of keeping a mask was used
        assert set(index.columns["part_kind"].tolist()) == set(PartKind)


@pytest.mark.parametrize("need_masks", [True, False])
def test_a_file_of_columns_holds_the_same(
    coco: dict[str, Any], tmp_path: Path, need_masks: bool
) -> None:
    built = build_index(coco, tmp_path, source="a.json", need_masks=need_masks)
    path = tmp_path / "index"
    with path.open("wb") as file:
        write_columns(file, built.columns.arrays, built.columns.meta)
    index = CocoIndex(open_columns(path))
    assert_same(index, coco, tmp_path, need_masks=need_masks)
    assert index.summary() == built.summary()
    assert not index.columns["bbox"].flags.writeable


def test_columns_of_all_records(coco: dict[str, Any], tmp_path: Path) -> None:
    records = build_index(coco, tmp_path, source="a.json", need_masks=True).records
    made = list(records)
    assert len(records) == len(made) == 6
    assert records.sizes.tolist() == [list(r.size) for r in made]
    assert records.image_ids.tolist() == [r.image_id for r in made]
    assert records.object_counts.tolist() == [len(r.labels) for r in made]
    assert records.object_counts[5] == 0
    assert [records.path(i) for i in range(6)] == [r.path for r in made]
    assert [records.labels_of(i).tolist() for i in range(6)] == [r.labels.tolist() for r in made]
    assert [records.position(r.image_id) for r in made] == list(range(6))
    for absent in (0, 4, 1000):
        with pytest.raises(KeyError):
            records.position(absent)
    assert plain(records[-1]) == plain(made[5])
    assert [plain(r) for r in records[1::2]] == [plain(r) for r in made[1::2]]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            records[outside]
    # What is made belongs to the caller.
    records[0].boxes[:] = -1
    polygons = records[0].segmentations
    assert polygons is not None
    assert isinstance(polygons[0], list)
    polygons[0][0][:] = -1
    assert plain(records[0]) == plain(made[0])


def test_has_object_means_one_that_is_no_crowd(coco: dict[str, Any], tmp_path: Path) -> None:
    def has_object(*crowds: int) -> bool:
        own = [
            {**coco["annotations"][0], "id": i, "iscrowd": c} for i, c in enumerate(crowds, start=1)
        ]
        return build_index({**coco, "annotations": own}, tmp_path, source="a").records.has_object

    assert [has_object(), has_object(1, 1), has_object(1, 0), has_object(0)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_data_set_without_masks_is_told_apart(coco: dict[str, Any], tmp_path: Path) -> None:
    boxes = build_index(coco, tmp_path, source="a.json").records
    assert not boxes.has_masks
    with pytest.raises(ValueError, match=r"image 3 \(.*a\.png\) has no segmentations"):
        DetectionDataset(boxes, Compose([]), seed=0, with_masks=True)
    masks = build_index(coco, tmp_path, source="a.json", need_masks=True).records
    assert len(DetectionDataset(masks, Compose([]), seed=0, with_masks=True)) == 6


def test_progress_reaches_the_end(coco: dict[str, Any], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    many = [{**coco["annotations"][0], "id": i} for i in range(1, 2502)]
    build_index(
        {**coco, "annotations": many},
        tmp_path,
        source="a.json",
        on_record=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1000, 2501), (2000, 2501), (2501, 2501)]


# Pickling: how a spawned worker gets its records.


def _describe(connection: Any, sets: list[Records]) -> None:
    connection.send([([plain(r) for r in records], records.columns.file) for records in sets])


def test_spawned_processes_see_the_same(coco: dict[str, Any], tmp_path: Path) -> None:
    in_memory = build_index(coco, tmp_path, source="a.json", need_masks=True).records
    expected = [plain(r) for r in in_memory]
    path = tmp_path / "index"
    with path.open("wb") as file:
        write_columns(file, in_memory.columns.arrays, in_memory.columns.meta)
    of_file = CocoIndex(open_columns(path)).records
    assert len(pickle.dumps(of_file)) < 500
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_describe, args=(there, [in_memory, of_file]))
    process.start()
    there.close()
    answer = here.recv()
    process.join()
    assert answer == [(expected, None), (expected, path)]
    assert [plain(r) for r in in_memory] == expected


def test_a_file_lost_or_replaced_in_use_is_named(coco: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "index"

    def write(images: list[Any]) -> None:
        index = build_index({**coco, "images": images}, tmp_path, source="a.json")
        with path.open("wb") as file:
            write_columns(file, index.columns.arrays, index.columns.meta)

    write(coco["images"])
    pickled = pickle.dumps(open_columns(path))
    write(coco["images"][:2])
    with pytest.raises(ColumnsError, match="index: replaced while in use; start anew"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(ColumnsError, match=r"index: lost while in use .*No such file"):
        pickle.loads(pickled)
    write(coco["images"])  # the same content again is as good
    assert len(Records(pickle.loads(pickled))) == 6


# Files read a piece at a time.


def test_streamed_files_hold_what_whole_ones_do(coco: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    own = [{"id": i, "x": ['\u00fc"]}', 1.5e300, 2**70, None, {"y": []}]} for i in range(10_000)]
    path.write_text(json.dumps({"info": {"a": 1}, **coco, "annotations": own}))
    streamed, whole = stream_coco(path), load_coco(path)
    assert len(streamed["annotations"]) == 10_000
    for _ in range(2):
        assert list(streamed["annotations"]) == whole["annotations"]
    assert streamed["images"] == whole["images"]
    assert streamed["categories"] == whole["categories"]


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "annotations": [{"bbox": [NaN, Infinity, -Infinity]}], "categories": []}',
        '\ufeff{"images": [], "annotations": [{"id": 1}], "categories": []}',
        '{"images": 3, "annotations": [{"id": "\\ud800"}], "categories": [], "images": []}',
    ],
)
def test_what_python_reads_beyond_json_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    whole = load_coco(path)
    streamed = stream_coco(path)
    assert repr(list(streamed["annotations"])) == repr(whole["annotations"])
    assert streamed["images"] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"images": [], "annotations": [',
        b'{"images": [], "annotations": []}',
        b'{"images": [], "annotations": {}, "categories": []}',
        b'{"images": [], "annotations": [' + b"[" * 100_000,
    ],
)
def test_unusable_files_raise_as_for_whole_ones(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError) as whole:
        load_coco(path)
    with pytest.raises(AnnotationError) as streamed:
        stream_coco(path)
    assert str(streamed.value) == str(whole.value)
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        stream_coco(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        stream_coco(tmp_path)


def test_a_record_that_is_no_text_is_an_annotation_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": [], "annotations": [{"x": "\xff"}], "categories": []}')
    with pytest.raises(AnnotationError, match=r"a\.json"):
        list(stream_coco(path)["annotations"])


@pytest.mark.real_data
@pytest.mark.parametrize("need_masks", [True, False])
@pytest.mark.parametrize("part", ["train", "val"])
def test_real_set_is_the_same_in_columns(real_data: Path, part: str, need_masks: bool) -> None:
    folder = real_data / "coco_tiny80"
    path = folder / "annotations" / f"instances_{part}2017.json"
    images = folder / f"{part}2017"
    index = build_index(stream_coco(path), images, source="a.json", need_masks=need_masks)
    assert_same(index, load_coco(path), images, need_masks=need_masks)
