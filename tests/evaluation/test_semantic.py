import json
import math
import pickle

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hotcoco import metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from instseg.evaluation.semantic import SemanticEvaluator, SemanticScores

Map = npt.NDArray[np.int64]


def by_loops(pairs: list[tuple[Map, Map]], num_classes: int, ignore: int) -> SemanticScores:
    """From the definitions: the sets X (predicted) and Y (true) of each class, as Python sets."""
    x: list[set[tuple[int, int, int]]] = [set() for _ in range(num_classes)]
    y: list[set[tuple[int, int, int]]] = [set() for _ in range(num_classes)]
    for image, (prediction, target) in enumerate(pairs):
        for i in range(target.shape[0]):
            for j in range(target.shape[1]):
                if target[i, j] != ignore:
                    x[prediction[i, j]].add((image, i, j))
                    y[target[i, j]].add((image, i, j))
    per_class = {}
    for c in range(num_classes):
        both, either = len(x[c] & y[c]), len(x[c] | y[c])
        per_class[str(c)] = {
            "accuracy": both / len(y[c]) if y[c] else -1.0,
            "jaccard": both / either if either else -1.0,
            "dice": 2 * both / (len(x[c]) + len(y[c])) if either else -1.0,
            "cosine": -1.0
            if not either
            else both / math.sqrt(len(x[c]) * len(y[c]))
            if x[c] and y[c]
            else 0.0,
        }
    stats = {}
    for key in ("accuracy", "jaccard", "dice", "cosine"):
        known = [scores[key] for scores in per_class.values() if scores[key] >= 0]
        stats["mean_accuracy" if key == "accuracy" else key] = (
            sum(known) / len(known) if known else -1.0
        )
    pixels = sum(map(len, y))
    right = sum(len(a & b) for a, b in zip(x, y, strict=True))
    stats["pixel_accuracy"] = right / pixels if pixels else -1.0
    confusion = tuple(
        tuple(len(y[t] & x[p]) for p in range(num_classes)) for t in range(num_classes)
    )
    return SemanticScores(stats, per_class, confusion, len(pairs), pixels)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[tuple[Map, Map]], int]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_classes = draw(st.integers(1, 5))
    # Fewer values than classes, so that some are absent from one map or both.
    used = draw(st.integers(1, num_classes))
    made = []
    for _ in range(draw(st.integers(0, 3))):
        size = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
        target = rng.integers(0, used, size)
        target[rng.random(size) < 0.2] = 255
        prediction = rng.integers(0, draw(st.integers(1, num_classes)), size)
        # What is predicted where the truth is ignored is nobody's business, no class included.
        prediction[(target == 255) & (rng.random(size) < 0.5)] = 99
        made.append((prediction, target))
    return made, num_classes


@settings(max_examples=150)
@given(pairs())
def test_equals_sets_of_pixels(case: tuple[list[tuple[Map, Map]], int]) -> None:
    images, num_classes = case
    evaluator = SemanticEvaluator(num_classes, boundary_tolerance=None)
    for image_id, (prediction, target) in enumerate(images):
        evaluator.update([image_id], [prediction], [target])
    scores, expected = evaluator.compute(), by_loops(images, num_classes, 255)
    assert scores.stats == pytest.approx(expected.stats, abs=1e-14)
    assert set(scores.stats) == set(expected.stats)
    for name, values in expected.per_class.items():
        assert scores.per_class[name] == pytest.approx(values, abs=1e-14)
    assert scores.confusion == expected.confusion
    assert (scores.images, scores.pixels) == (expected.images, expected.pixels)


def test_hand_worked() -> None:
    target = np.array([[0, 0, 1, 1], [0, 0, 1, 255]])
    prediction = np.array([[0, 0, 0, 1], [0, 1, 1, 2]])
    evaluator = SemanticEvaluator(["road", "car", "sky"], boundary_tolerance=None)
    evaluator.update(["a"], [torch.from_numpy(prediction)], [target.astype(np.uint8)])
    scores = evaluator.compute()
    assert scores.confusion == ((3, 1, 0), (1, 2, 0), (0, 0, 0))
    assert scores.per_class["road"] == pytest.approx(
        {"accuracy": 3 / 4, "jaccard": 3 / 5, "dice": 6 / 8, "cosine": 3 / 4}
    )
    assert scores.per_class["car"] == pytest.approx(
        {"accuracy": 2 / 3, "jaccard": 2 / 4, "dice": 4 / 6, "cosine": 2 / 3}
    )
    assert set(scores.per_class["sky"].values()) == {-1.0}
    assert scores.stats["jaccard"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert scores.stats["pixel_accuracy"] == pytest.approx(5 / 7)
    assert json.loads(json.dumps(scores.to_dict()))["stats"] == scores.stats


def test_a_class_that_is_only_predicted_counts_zero_in_the_overlaps() -> None:
    evaluator = SemanticEvaluator(2, boundary_tolerance=None)
    evaluator.update([0], [np.array([[0, 1]])], [np.array([[0, 0]])])
    scores = evaluator.compute()
    assert scores.per_class["1"] == {"accuracy": -1.0, "jaccard": 0.0, "dice": 0.0, "cosine": 0.0}
    assert scores.stats["jaccard"] == 0.25
    assert scores.stats["mean_accuracy"] == 0.5


def test_means_agree_with_hotcoco_mean_iou() -> None:
    rng = np.random.default_rng(3)
    target, prediction = rng.integers(0, 4, (2, 30, 40))
    evaluator = SemanticEvaluator(6, boundary_tolerance=None)
    evaluator.update([0], [prediction], [target])
    scores = evaluator.compute()
    reference = metrics.mean_iou(np.array(scores.confusion, dtype=np.uint64))
    assert scores.stats["jaccard"] == pytest.approx(reference["mIoU"], abs=1e-14)
    assert scores.stats["mean_accuracy"] == pytest.approx(reference["mAcc"], abs=1e-14)
    assert scores.stats["pixel_accuracy"] == pytest.approx(reference["aAcc"], abs=1e-14)


def random_maps(seed: int, count: int) -> list[tuple[Map, Map]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 3, (2, 20, 25))) for _ in range(count)]  # type: ignore[misc]


def test_shards_merge_to_the_whole_and_repeated_images_count_once() -> None:
    images = random_maps(1, 5)
    whole = SemanticEvaluator(3)
    whole.update(range(5), [p for p, _ in images], [t for _, t in images])
    shards = []
    for ids in ([0, 1, 2, 0], [3, 4, 1]):  # image 1 in both, image 0 twice in one
        shard = SemanticEvaluator(3)
        shard.update(ids, [images[i][0] for i in ids], [images[i][1] for i in ids])
        shards.append(pickle.loads(pickle.dumps(shard)))
    shards[0].merge(shards[1])
    assert shards[0].compute().images == 5
    merged = shards[0].compute()
    assert merged.confusion == whole.compute().confusion
    assert merged.stats == pytest.approx(whole.compute().stats, abs=1e-14)


def test_reset_and_no_images() -> None:
    evaluator = SemanticEvaluator(2)
    evaluator.update([0], [np.zeros((3, 3), int)], [np.zeros((3, 3), int)])
    evaluator.reset()
    scores = evaluator.compute()
    assert set(scores.stats.values()) == {-1.0}
    assert (scores.images, scores.pixels) == (0, 0)


def test_an_evaluator_grows_with_the_images_not_with_their_pixels() -> None:
    sizes = []
    for size in (50, 400):
        evaluator = SemanticEvaluator(3)
        target = np.zeros((size, size), np.uint8)
        target[: size // 2] = 1
        evaluator.update(range(4), [target] * 4, [target] * 4)
        sizes.append(len(pickle.dumps(evaluator)))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_negative_ignore_label_and_none() -> None:
    target, prediction = np.array([[0, -100, 1]]), np.array([[0, 1, 1]])
    evaluator = SemanticEvaluator(2, ignore_label=-100, boundary_tolerance=None)
    evaluator.update([0], [prediction], [target])
    assert evaluator.compute().pixels == 2
    with pytest.raises(ValueError, match=r"image 0: the target holds -100, which is no class id"):
        SemanticEvaluator(2, ignore_label=None).update([0], [prediction], [target])


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction must be a map of integers.*float64"),
        (np.zeros((2, 2), int), np.zeros(4, int), r"target must be a map.*\[4\]"),
        (np.zeros((2, 3), int), np.zeros((2, 2), int), r"size \[2, 3\] and the target of \[2, 2\]"),
        (np.full((2, 2), 2), np.zeros((2, 2), int), "prediction holds 2, which is no class id"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "target holds -1, which is no class id"),
    ],
)
def test_bad_maps_name_the_image(
    prediction: npt.NDArray[np.generic], target: npt.NDArray[np.generic], message: str
) -> None:
    evaluator = SemanticEvaluator(2)
    with pytest.raises(ValueError, match=f"image 'x.png': .*{message}"):
        evaluator.update(["x.png"], [prediction], [target])
    assert evaluator.compute().images == 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="classes must be one or more distinct names"):
        SemanticEvaluator(["a", "a"])
    with pytest.raises(ValueError, match="classes must be one or more distinct names"):
        SemanticEvaluator(0)
    with pytest.raises(ValueError, match="ignore_label 1 is the class 'b'"):
        SemanticEvaluator(["a", "b"], ignore_label=1)
    with pytest.raises(ValueError, match=r"boundary_tolerance must be .* got -0.1"):
        SemanticEvaluator(2, boundary_tolerance=-0.1)
    with pytest.raises(ValueError, match="2 image ids, 1 predictions and 1 targets"):
        SemanticEvaluator(2).update([1, 2], [np.zeros((1, 1), int)], [np.zeros((1, 1), int)])
    with pytest.raises(ValueError, match=r"equal settings merge.*'ignore_label': 255.*None"):
        SemanticEvaluator(2).merge(SemanticEvaluator(2, ignore_label=None))


@pytest.mark.real_data
def test_truth_of_em_slices_against_itself_and_shifted(real_data) -> None:  # type: ignore[no-untyped-def]
    evaluator, shifted = SemanticEvaluator(2), SemanticEvaluator(2)
    for i in range(3):
        path = real_data / "isbi2012_em" / "train" / "label" / f"{i}.png"
        target = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint8)
        evaluator.update([i], [target], [target])
        shifted.update([i], [np.roll(target, 2, axis=1)], [target])
    assert set(evaluator.compute().stats.values()) == {1.0}
    scores = shifted.compute()
    # Two pixels aside the areas differ, the outlines still lie within the six that are allowed.
    assert scores.stats["jaccard"] < 0.9
    assert scores.stats["boundary_f"] > 0.99
