import copy

import pytest

from instseg.data.folds import select_images, take_fold, take_names


def make_coco(names: list[str]) -> dict:
    return {
        "info": {"year": 2024},
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 100 + 2 * i + j, "image_id": 10 + i, "category_id": 1}
            for i in range(len(names))
            for j in range(2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "unused"}],
    }


def test_select_images_takes_their_annotations_and_leaves_the_rest_alone():
    coco = make_coco(["c", "a", "b"])
    before = copy.deepcopy(coco)
    chosen = select_images(coco, lambda image: image["file_name"] != "a")
    assert [image["id"] for image in chosen["images"]] == [10, 12]
    assert [a["id"] for a in chosen["annotations"]] == [100, 101, 104, 105]
    assert chosen["categories"] == coco["categories"]
    assert chosen["info"] == {"year": 2024}
    assert coco == before


def test_select_images_keeps_annotations_of_unknown_images_for_the_check():
    coco = make_coco(["a", "b"])
    coco["annotations"].append({"id": 1, "image_id": 999, "category_id": 1})
    chosen = select_images(coco, lambda image: image["file_name"] == "a")
    assert [a["image_id"] for a in chosen["annotations"]] == [10, 10, 999]


def test_fold_goes_by_the_order_of_file_names():
    coco = make_coco(["g", "c", "a", "e", "b", "f", "d"])  # sorted: a b c d e f g
    val = take_fold(coco, folds=3, index=1, part="val")
    train = take_fold(coco, folds=3, index=1, part="train")
    assert sorted(i["file_name"] for i in val["images"]) == ["b", "e"]
    assert sorted(i["file_name"] for i in train["images"]) == ["a", "c", "d", "f", "g"]
    assert len(val["annotations"]) == 4
    assert len(train["annotations"]) == 10


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_the_val_parts_are_a_partition_and_train_is_the_complement(folds):
    coco = make_coco([f"{i:02d}" for i in range(11)])
    everything = {image["id"] for image in coco["images"]}
    seen: list[int] = []
    for index in range(folds):
        val = {i["id"] for i in take_fold(coco, folds=folds, index=index, part="val")["images"]}
        train = {i["id"] for i in take_fold(coco, folds=folds, index=index, part="train")["images"]}
        assert val | train == everything
        assert not val & train
        seen += val
    assert sorted(seen) == sorted(everything)


@pytest.mark.parametrize(("folds", "index"), [(1, 0), (0, 0), (5, 5), (5, -1)])
def test_impossible_folds_are_refused(folds, index):
    with pytest.raises(ValueError, match=f"got {folds} and {index}"):
        take_fold(make_coco(["a"]), folds=folds, index=index, part="val")


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'test'"):
        take_fold(make_coco(["a"]), folds=2, index=0, part="test")  # type: ignore[arg-type]


def test_defective_records_stay_for_the_check_to_report():
    coco = {
        "images": [
            {"id": 1, "file_name": "a.png"},
            {"id": 2, "file_name": "b.png"},
            7,
            {"id": "x"},
        ],
        "annotations": [{"id": 1, "image_id": 2}, {"id": 2}, None, {"id": 3, "image_id": [1]}],
        "categories": [],
    }
    val = take_fold(coco, folds=2, index=0, part="val")
    assert val["images"] == [{"id": 1, "file_name": "a.png"}, 7, {"id": "x"}]
    assert val["annotations"] == [{"id": 2}, None, {"id": 3, "image_id": [1]}]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (None, [], ["day/1.png", "day/2.png", "night/1.png", "A.png"]),
        (["day/*"], [], ["day/1.png", "day/2.png"]),
        (["*1.png"], [], ["day/1.png", "night/1.png"]),  # "*" matches "/" too
        (["?.png"], [], ["A.png"]),
        (["a.png"], [], []),  # case counts, on every system
        (["*/[12].png"], ["night/*"], ["day/1.png", "day/2.png"]),
        (None, ["*2*", "A*"], ["day/1.png", "night/1.png"]),
        (["day/1.png", "night/1.png"], ["day/1.png"], ["night/1.png"]),
        (["1.png"], [], []),  # the whole name
    ],
)
def test_names_by_patterns(include, exclude, left):
    coco = make_coco(["day/1.png", "day/2.png", "night/1.png", "A.png"])
    before = copy.deepcopy(coco)
    chosen = take_names(coco, include=include, exclude=exclude)
    assert [image["file_name"] for image in chosen["images"]] == left
    ids = [image["id"] for image in chosen["images"]]
    assert [a["image_id"] for a in chosen["annotations"]] == [i for i in ids for _ in range(2)]
    assert chosen["categories"] == coco["categories"]
    assert coco == before


def test_defective_records_stay_with_names_too():
    coco = {"images": [{"id": 1, "file_name": "a"}, {"id": 2}], "annotations": [], "categories": []}
    assert take_names(coco, include=["b"], exclude=[])["images"] == [{"id": 2}]
