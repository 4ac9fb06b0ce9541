import json
import math
import pickle

import numpy as np
import pytest
import torch

from instseg.evaluation.images import MAX_PSNR, ImageEvaluator
from instseg.structures.image_target import ImageTarget


def random_pair(seed: int, channels: int = 2, size=(13, 15)) -> tuple[ImageTarget, ImageTarget]:
    rng = np.random.default_rng(seed)
    true = rng.random((channels, *size))
    made = np.clip(true + rng.normal(scale=0.2, size=true.shape), 0, 1)
    return ImageTarget(torch.from_numpy(made)), ImageTarget(torch.from_numpy(true))


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2004), equations 13 to 17, window by window, on values in [0, 1]."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for x, y in zip(a, b, strict=True):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
    return float(np.mean(values))


def test_figures_are_those_of_the_definitions():
    evaluator = ImageEvaluator()
    pairs = {"a": random_pair(0), "b": random_pair(1, channels=1, size=(11, 20))}
    evaluator.update(list(pairs), [m for m, _ in pairs.values()], [t for _, t in pairs.values()])
    scores = evaluator.compute()
    expected = {}
    for name, (made, true) in pairs.items():
        a, b = made.image.numpy(), true.image.numpy()
        mse = ((a - b) ** 2).mean()
        expected[name] = (np.abs(a - b).mean(), 10 * math.log10(1 / mse), ssim_by_loops(a, b))
        assert scores.per_image[name] == pytest.approx(expected[name], rel=1e-9)
    assert scores.images == 2
    for i, key in enumerate(("l1", "psnr", "ssim")):
        assert scores.stats[key] == pytest.approx((expected["a"][i] + expected["b"][i]) / 2)
    assert json.loads(json.dumps(scores.to_dict()))["per_image"]["a"]["l1"] == pytest.approx(
        expected["a"][0]
    )


def test_a_constant_shift_by_hand():
    true = ImageTarget(torch.full((3, 12, 12), 100, dtype=torch.uint8))
    made = ImageTarget(torch.full((3, 12, 12), 151, dtype=torch.uint8))  # 0.2 brighter
    evaluator = ImageEvaluator()
    evaluator.update([1], [made], [true])
    figures = evaluator.compute().per_image[1]
    assert figures.l1 == pytest.approx(0.2, rel=1e-6)
    assert figures.psnr == pytest.approx(20 * math.log10(5), rel=1e-6)
    p, q = 151 / 255, 100 / 255
    assert figures.ssim == pytest.approx((2 * p * q + 1e-4) / (p * p + q * q + 1e-4), rel=1e-5)


def test_equal_pictures_have_the_best_figures():
    true = random_pair(0)[1]
    evaluator = ImageEvaluator()
    evaluator.update([1], [true], [true])
    assert evaluator.compute().stats == {"l1": 0.0, "psnr": MAX_PSNR, "ssim": pytest.approx(1.0)}


def test_merged_evaluators_score_as_one():
    pairs = [random_pair(i) for i in range(3)]
    whole, first, second = ImageEvaluator(), ImageEvaluator(), ImageEvaluator()
    for evaluator, ids in ((whole, [0, 1, 2]), (first, [0, 1]), (second, [1, 2])):
        evaluator.update(ids, [pairs[i][0] for i in ids], [pairs[i][1] for i in ids])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == whole.compute()
    first.reset()
    assert first.compute().stats == {"l1": -1.0, "psnr": -1.0, "ssim": -1.0}
    assert first.compute().images == 0


@pytest.mark.parametrize(
    ("made", "true", "message"),
    [
        (torch.zeros(3, 12, 12), torch.zeros(3, 12, 13), "resize the prediction"),
        (torch.zeros(1, 12, 12), torch.zeros(3, 12, 12), r"prediction is \[1, 12, 12\]"),
        (torch.zeros(3, 10, 12), torch.zeros(3, 10, 12), "11 pixels at least, .* got 10x12"),
        (torch.full((1, 11, 11), torch.nan), torch.zeros(1, 11, 11), "prediction holds values"),
        (torch.zeros(1, 11, 11), torch.full((1, 11, 11), torch.inf), "target holds values"),
    ],
)
def test_bad_pictures_are_named(made, true, message):
    with pytest.raises(ValueError, match=rf"image 'x7': .*{message}"):
        ImageEvaluator().update(["x7"], [ImageTarget(made)], [ImageTarget(true)])
