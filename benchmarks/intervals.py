"""Whether confidence intervals hold the truth, and equal models are called equal.

    python -m benchmarks.intervals [--trials 1000]

Data sets and models are drawn from a known distribution, as matches, without pictures: images
differ in difficulty, objects in how well they are localised, and two models see the same images.
Counts how often the 95 % interval of AP holds its true value, and how often two models of equal
true AP are called different at the 5 % level. Prints and writes results/intervals.json.

AP of few images is biased upwards: interpolation takes the best precision of what is left of the
curve. So there are two true values: AP expected of a data set of that size, and of one without end.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from benchmarks.common import write
from instseg.evaluation.accumulate import accumulate
from instseg.evaluation.bootstrap import draw_weights, interval, p_value, replicate
from instseg.evaluation.matching import Matches
from instseg.evaluation.params import CocoParams
from instseg.evaluation.scores import mean_of_known

PARAMS = CocoParams(areas={"all": (0.0, 1e10)}, max_detections=(100,))
SETTINGS = ((200, 1), (500, 1), (500, 5), (1000, 20))
"""Images and categories."""
REPLICATES = 200
ENDLESS = 200_000
"""Images that stand for a data set without end."""


@dataclass(frozen=True)
class Scene:
    """Objects on images of different difficulty."""

    images: int
    categories: int
    difficulty: np.ndarray
    image: np.ndarray
    category: np.ndarray


def draw_scene(rng: np.random.Generator, images: int, categories: int) -> Scene:
    counts = rng.poisson(4, images) * (rng.random(images) < 0.9)
    image = np.repeat(np.arange(images), counts)
    difficulty = rng.normal(0, 0.5, images)
    return Scene(images, categories, difficulty, image, rng.integers(0, categories, len(image)))


def detect(rng: np.random.Generator, scene: Scene) -> Matches:
    """A model's detections: nine objects of ten, more or less well, and false ones."""
    quality = rng.normal(1.2, 1, len(scene.image)) - scene.difficulty[scene.image]
    overlap = 1 / (1 + np.exp(-quality))
    seen = rng.random(len(overlap)) < 0.9
    false_image = np.repeat(np.arange(scene.images), rng.poisson(6, scene.images))
    false_category = rng.integers(0, scene.categories, len(false_image))
    score = overlap + rng.normal(0, 0.15, len(overlap))

    image = np.concatenate([scene.image[seen], false_image])
    category = np.concatenate([scene.category[seen], false_category])
    scores = np.concatenate([score[seen], rng.normal(0.35, 0.25, len(false_image))])
    iou = np.concatenate([overlap[seen], np.zeros(len(false_image))])
    order = np.lexsort((-scores, category, image))
    group = (image * scene.categories + category)[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    found = iou[order][:, None, None] >= np.array(PARAMS.iou_thresholds)[None, :, None]
    return Matches(
        image=image[order],
        category=category[order],
        score=scores[order],
        rank=rank,
        found=found,
        ignored=np.zeros_like(found),
        truth_image=scene.image,
        truth_category=scene.category,
        truth_ignored=np.zeros((len(scene.image), 1), np.bool_),
    )


def average_precision(matches: Matches, categories: int) -> float:
    return float(accumulate(matches, PARAMS, categories).precision.mean())


def replicates_of(matches: Matches, scene: Scene, weights: np.ndarray) -> np.ndarray:
    drawn = replicate(matches, PARAMS, scene.categories, weights)
    return mean_of_known(drawn.precision[..., 0].mean(axis=1), axis=1)


def try_out(images: int, categories: int, trials: int) -> dict[str, object]:
    rng = np.random.default_rng([images, categories])
    endless = average_precision(detect(rng, draw_scene(rng, ENDLESS, categories)), categories)
    expected = float(
        np.mean(
            [
                average_precision(detect(rng, draw_scene(rng, images, categories)), categories)
                for _ in range(4 * trials)
            ]
        )
    )
    values, errors, holds, holds_endless, different = [], [], 0, 0, 0
    for trial in range(trials):
        scene = draw_scene(rng, images, categories)
        weights = draw_weights(images, REPLICATES, trial)
        models = [detect(rng, scene) for _ in range(2)]
        a, b = (average_precision(m, categories) for m in models)
        drawn_a, drawn_b = (replicates_of(m, scene, weights) for m in models)
        found = interval(a, drawn_a)
        assert found.low is not None
        assert found.high is not None
        holds += found.low <= expected <= found.high
        holds_endless += found.low <= endless <= found.high
        p = p_value(b - a, drawn_b - drawn_a)
        different += p is not None and p < 0.05
        values.append(a)
        errors.append(float(drawn_a.std(ddof=1)))
    return {
        "images": images,
        "categories": categories,
        "trials": trials,
        "AP_expected_at_this_size": round(expected, 4),
        "AP_of_endless_data": round(endless, 4),
        "standard_deviation": round(float(np.std(values)), 5),
        "mean_standard_error": round(float(np.mean(errors)), 5),
        "intervals_that_hold_the_expected_AP": holds / trials,
        "intervals_that_hold_the_endless_AP": holds_endless / trials,
        "equal_models_called_different": different / trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    rows = []
    for images, categories in SETTINGS:
        rows.append(try_out(images, categories, args.trials))
        print(rows[-1], flush=True)
    command = f"python -m benchmarks.intervals --trials {args.trials}"
    print(write("intervals", {"command": command, "replicates": REPLICATES, "rows": rows}))


if __name__ == "__main__":
    main()
