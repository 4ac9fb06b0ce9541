"""k-means anchors: against every partition of small sets, and clusters that were planted."""

import itertools

import numpy as np
import pytest

from instseg.data.anchors import _means, box_sizes, kmeans_anchors, mean_best_iou


def iou(a, b) -> float:
    """Of two boxes on one centre, from the definition."""
    inter = min(a[0], b[0]) * min(a[1], b[1])
    return inter / (a[0] * a[1] + b[0] * b[1] - inter)


def mean_best(sizes, anchors) -> float:
    return sum(max(iou(size, anchor) for anchor in anchors) for size in sizes) / len(sizes)


def stable_means(sizes, k):
    """The means of every partition in ``k`` clusters whose boxes are all nearest to their own."""
    for labels in itertools.product(range(k), repeat=len(sizes)):
        if len(set(labels)) < k:
            continue
        groups = [[s for s, at in zip(sizes, labels, strict=True) if at == j] for j in range(k)]
        means = [[sum(axis) / len(g) for axis in zip(*g, strict=True)] for g in groups]
        if all(
            iou(size, means[at]) == max(iou(size, mean) for mean in means)
            for size, at in zip(sizes, labels, strict=True)
        ):
            yield sorted(means, key=lambda mean: mean[0] * mean[1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_of_all_stable_partitions_of_a_small_set_the_best_is_found(seed, k):
    sizes = np.random.default_rng(seed).uniform(5, 100, (7, 2))
    best = max(stable_means(sizes.tolist(), k), key=lambda means: mean_best(sizes, means))
    anchors = kmeans_anchors(sizes, k, seed=0, restarts=20)
    np.testing.assert_allclose(anchors, best, rtol=1e-12)
    assert mean_best_iou(sizes, anchors) == pytest.approx(mean_best(sizes, best), abs=1e-12)


def test_a_case_worked_by_hand():
    """Two wide boxes and two high ones: IoU within a pair 100/120, and 50/150 across."""
    sizes = np.array([[20.0, 5], [24, 5], [5, 20], [5, 24]])
    anchors = kmeans_anchors(sizes, 2, seed=0)
    assert anchors.tolist() == [[5, 22], [22, 5]]
    assert mean_best_iou(sizes, anchors) == pytest.approx((20 / 22 + 22 / 24) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed):
    rng = np.random.default_rng(7)
    truth = np.array([[10.0, 13], [33, 23], [30, 61], [116, 90], [156, 198]])
    sizes = np.concatenate([centre * rng.uniform(0.95, 1.05, (40, 2)) for centre in truth])
    anchors = kmeans_anchors(rng.permutation(sizes), 5, seed=seed)
    np.testing.assert_allclose(anchors, truth, rtol=0.02)
    assert mean_best_iou(sizes, anchors) > 0.94


def test_the_result_is_a_function_of_the_seed_and_sorted_by_area():
    sizes = np.random.default_rng(0).lognormal(3, 1, (500, 2))
    first = kmeans_anchors(sizes, 9, seed=3)
    assert np.array_equal(first, kmeans_anchors(sizes, 9, seed=3))
    assert first.shape == (9, 2)
    assert (np.diff(first.prod(axis=1)) >= 0).all()
    assert mean_best_iou(sizes, first) > mean_best_iou(sizes, kmeans_anchors(sizes, 3, seed=3))


def test_as_many_anchors_as_sizes_are_the_sizes():
    sizes = np.array([[9.0, 9], [4, 4], [4, 4], [2, 30]])
    assert kmeans_anchors(sizes, 3, seed=0).tolist() == [[4, 4], [2, 30], [9, 9]]


def test_a_cluster_that_lost_its_boxes_moves_to_the_worst_covered_one():
    sizes = np.array([[4.0, 4], [6, 6], [50, 2]])
    means = _means(sizes, np.array([0, 0, 0]), np.array([0.9, 0.8, 0.1]), k=2)
    assert means.tolist() == [[20, 4], [50, 2]]


@pytest.mark.parametrize(
    ("sizes", "k", "message"),
    [
        ([[3, 4], [3, 4], [5, 6]], 3, r"k must be in 1\.\.2, the number of different.* got 3"),
        ([[3, 4]], 0, r"k must be in 1\.\.1"),
        (np.zeros((0, 2)), 1, r"\[N, 2\].*got \[0, 2\]"),
        ([[3, 4, 5]], 1, r"\[N, 2\].*got \[1, 3\]"),
        ([[3, 0]], 1, "finite and > 0"),
        ([[3, np.nan]], 1, "finite and > 0"),
    ],
)
def test_what_cannot_be_clustered(sizes, k, message):
    with pytest.raises(ValueError, match=message):
        kmeans_anchors(np.asarray(sizes, dtype=float), k, seed=0)


COCO = {
    "images": [{"id": 1, "height": 100, "width": 200}, {"id": 2, "height": 50, "width": 25}],
    "annotations": [
        {"image_id": 1, "bbox": [10, 10, 20, 30], "iscrowd": 0},
        {"image_id": 1, "bbox": [190, 0, 40, 10], "iscrowd": 0},  # 10 x 10 of it in the image
        {"image_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"image_id": 2, "bbox": [0, 0, 5, 10], "iscrowd": 0},
    ],
}  # fmt: skip


def test_sizes_at_the_networks_input():
    fitted = box_sizes(COCO, (100, 100), letterbox=True)  # scales 1/2 and 2
    assert fitted.tolist() == [[10, 15], [5, 5], [10, 20]]
    stretched = box_sizes(COCO, (100, 100), letterbox=False)
    assert stretched.tolist() == [[10, 30], [5, 10], [20, 20]]
    assert box_sizes({**COCO, "annotations": []}, (9, 9), letterbox=True).shape == (0, 2)
