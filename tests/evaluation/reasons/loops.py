"""The reasons once more, as plain loops over pycocotools' matches and overlaps."""

import contextlib
import io
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(eq=False)
class Truth:
    image: int
    category: int
    area: float
    shape: Any
    finder: "Guess | None" = None


@dataclass(eq=False)
class Guess:
    image: int
    category: int
    score: float
    found: Truth | None
    overlaps: list[tuple[float, Truth]] = field(default_factory=list)
    kind: str = ""
    target: Truth | None = None

    def best(self, same: bool) -> tuple[float, Truth | None]:
        chosen = [p for p in self.overlaps if (p[1].category == self.category) == same]
        return max(chosen, key=lambda p: p[0], default=(0.0, None))


def by_pycocotools(
    gt: dict[str, Any], dt: list[dict[str, Any]], iou_type: str
) -> tuple[list[Guess], list[Truth]]:
    """Detections that count, by image id, and objects, by image id and annotation id."""
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    truth, found, evaluation = evaluate(gt, dt, iou_type)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.iouThrs = [0.5]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    truths = {
        a["id"]: Truth(a["image_id"], a["category_id"], a["area"], as_code(truth, a, iou_type))
        for a in sorted(gt["annotations"], key=lambda a: (a["image_id"], a["id"]))
        if not a["iscrowd"]
    }
    guesses = {}
    for cell in filter(None, evaluation.evalImgs):
        columns = zip(cell["dtIds"], cell["dtMatches"][0], cell["dtIgnore"][0], strict=True)
        for number, match, ignored in columns:
            if ignored:
                continue
            record = found.anns[number]
            guess = Guess(
                cell["image_id"], cell["category_id"], record["score"], truths.get(int(match))
            )
            if guess.found:
                guess.found.finder = guess
            for t in truths.values():
                if t.image == guess.image:
                    iou = coco_mask.iou([record[shape]], [t.shape], [0])[0][0]
                    guess.overlaps.append((float(iou), t))
            guesses[number] = guess
    in_order = sorted(guesses.items(), key=lambda item: (item[1].image, item[0]))
    return [guess for _, guess in in_order], list(truths.values())


def precision(gt: dict[str, Any], dt: list[dict[str, Any]], iou_type: str) -> Any:
    """pycocotools' table ``[T, R, K, A, M]``."""
    _, _, evaluation = evaluate(gt, dt, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"]


def evaluate(
    gt: dict[str, Any], dt: list[dict[str, Any]], iou_type: str
) -> tuple[COCO, COCO, COCOeval]:
    """pycocotools' data sets, its detections numbered from 1, and its evaluation, not yet run."""
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    kept = (shape, "image_id", "category_id", "score")
    truth, found = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = gt
        truth.createIndex()
        if dt:
            found = truth.loadRes([{k: d[k] for k in kept} for d in dt])
        else:
            found.dataset = gt | {"annotations": []}
            found.createIndex()
        return truth, found, COCOeval(truth, found, iou_type)


def as_code(truth: COCO, annotation: dict[str, Any], iou_type: str) -> Any:
    return annotation["bbox"] if iou_type == "bbox" else truth.annToRLE(annotation)


def name_errors(guesses: list[Guess], truths: list[Truth]) -> Counter[str]:
    """TIDE, section 2.2; sets ``kind`` and ``target``."""
    for guess in guesses:
        same, other = guess.best(True), guess.best(False)
        if guess.found:
            guess.kind = "correct"
        elif 0.1 <= same[0] < 0.5:
            guess.kind, guess.target = "localisation", same[1]
        elif other[0] >= 0.5:
            guess.kind, guess.target = "classification", other[1]
        elif same[0] >= 0.5:
            guess.kind = "duplicate"
        elif other[0] < 0.1:
            guess.kind = "background"
        else:
            guess.kind = "both"
    counts = Counter(g.kind for g in guesses)
    counts["missed"] = len(missed(guesses, truths))
    return counts


def missed(guesses: list[Guess], truths: list[Truth]) -> list[Truth]:
    return [t for t in truths if not t.finder and not any(g.target is t for g in guesses)]


def mended_ap(guesses: list[Guess], truths: list[Truth], kind: str) -> float:
    """TIDE, section 2.3: AP at IoU 0.5 once the errors of a kind are mended ("" mends none)."""
    mended: dict[Truth, Guess] = {}
    for guess in sorted(guesses, key=lambda g: -g.score):
        if guess.kind == kind and guess.target and not guess.target.finder:
            mended.setdefault(guess.target, guess)
    points: list[tuple[int, float, bool]] = []  # category, score, true positive
    for guess in guesses:
        if guess.kind != kind:
            points.append((guess.category, guess.score, guess.found is not None))
        elif guess.target and mended.get(guess.target) is guess:
            points.append((guess.target.category, guess.score, True))
    wanted = [t for t in truths if kind != "missed" or t not in missed(guesses, truths)]
    values = []
    for category in sorted({t.category for t in truths}):
        own = [(s, correct) for c, s, correct in points if c == category]
        objects = sum(t.category == category for t in wanted)
        if own or objects:
            values.append(average_precision(own, objects))
    if not truths:
        return 0.0
    return sum(values) / len(values) if values else 1.0


def average_precision(points: list[tuple[float, bool]], objects: int) -> float:
    """COCO's: the mean over 101 recalls of the highest precision at that recall or beyond."""
    if not objects:
        return 0.0
    reached, true = [], 0
    for rank, (_, correct) in enumerate(sorted(points, key=lambda p: -p[0]), start=1):
        true += correct
        reached.append((true / objects, true / rank))
    total = 0.0
    for step in range(101):
        # As numpy.linspace makes them, so that a recall of just 0.07 counts as in COCO.
        total += max((p for r, p in reached if r >= step * 0.01), default=0.0)
    return total / 101


def best_f1(guesses: list[Guess], objects: int) -> tuple[float, float] | None:
    """(F1, score), every score tried; the higher score of two that do equally well."""
    best = None
    for score in sorted({g.score for g in guesses}, reverse=True):
        kept = [g for g in guesses if g.score >= score]
        f1 = 2 * sum(g.found is not None for g in kept) / (len(kept) + objects)
        if f1 > 0 and (best is None or f1 > best[0]):
            best = f1, score
    return best


def operating_scores(
    guesses: list[Guess], truths: list[Truth], categories: list[int]
) -> dict[int, float]:
    overall = best_f1(guesses, len(truths))
    scores = {}
    for category in categories:
        own = [g for g in guesses if g.category == category]
        best = best_f1(own, sum(t.category == category for t in truths)) or overall
        scores[category] = best[1] if best else -math.inf
    return scores


def confusion(guesses: list[Guess], truths: list[Truth], categories: list[int]) -> list[list[int]]:
    scores = operating_scores(guesses, truths, categories)
    kept = [g for g in guesses if g.score >= scores[g.category]]
    background = len(categories)
    matrix = [[0] * (background + 1) for _ in range(background + 1)]
    taken = [g.found for g in kept if g.found]
    for guess in sorted(kept, key=lambda g: -g.score):
        row = background
        if guess.found:
            row = categories.index(guess.category)
        else:
            free = [
                (iou, t)
                for iou, t in guess.overlaps
                if iou >= 0.5 and t.category != guess.category and t not in taken
            ]
            if free:
                target = max(free, key=lambda p: p[0])[1]
                taken.append(target)
                row = categories.index(target.category)
        matrix[row][categories.index(guess.category)] += 1
    for truth in truths:
        if truth not in taken:
            matrix[categories.index(truth.category)][background] += 1
    return matrix


def calibration(guesses: list[Guess]) -> tuple[float, float, list[int]]:
    """Guo et al. 2017, eq. 3 and 5: (ECE, MCE, counts), ten bins closed below."""
    bins: list[list[Guess]] = [[] for _ in range(10)]
    for guess in guesses:
        bins[min(int(guess.score * 10), 9)].append(guess)
    gaps = [
        abs(sum(g.found is not None for g in b) - sum(g.score for g in b)) / len(b)
        for b in bins
        if b
    ]
    sizes = [len(b) for b in bins]
    weighted = sum(gap * n for gap, n in zip(gaps, filter(None, sizes), strict=True))
    return (weighted / len(guesses) if guesses else 0.0), max(gaps, default=0.0), sizes
