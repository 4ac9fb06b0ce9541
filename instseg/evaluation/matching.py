"""Which detection finds which object: COCO's greedy assignment, kept in compact form.

For each image and category the detections, best score first, each take the free object of highest
IoU at or above a threshold (``COCOeval.evaluateImg``). Every figure follows from these matches, so
that bootstrap replicates and merged shards never match again. hotcoco and pycocotools compute the
same but give it out as nested lists, which cost gigabytes; tests hold the three equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from instseg.evaluation.params import CocoParams
from instseg.evaluation.tables import Bools, Detections, Floats, Ints, Truth
from instseg.ops import rle

Positions = npt.NDArray[np.int32]
_PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Matches:
    """The assignment of N detections to G objects at T thresholds and A area ranges.

    Args:
        image: ``int32 [N]``, position of the image, as in `Shapes`.
        category: ``int32 [N]``; 0 for all where matching was class-agnostic.
        score: ``float64 [N]``.
        rank: ``int32 [N]``: 0 for the best detection of its image and category, and so on.
        found: ``bool [N, T, A]``: the detection is assigned to an object.
        ignored: ``bool [N, T, A]``: it counts neither for nor against (it found an ignored object,
            or found none and lies outside the area range).
        truth_image: ``int32 [G]``.
        truth_category: ``int32 [G]``.
        truth_ignored: ``bool [G, A]``: crowds and objects outside the area range.
    """

    image: Positions
    category: Positions
    score: Floats
    rank: Positions
    found: Bools
    ignored: Bools
    truth_image: Positions
    truth_category: Positions
    truth_ignored: Bools

    @classmethod
    def join(cls, parts: Sequence[Matches]) -> Matches:
        """The matches of several sets of images as one; an image may be in one part alone."""
        names = [f.name for f in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    def on_images(self, chosen: Bools) -> Matches:
        """The part on the images whose positions are true in ``chosen``."""
        keep, truth = chosen[self.image], chosen[self.truth_image]
        return Matches(
            image=self.image[keep],
            category=self.category[keep],
            score=self.score[keep],
            rank=self.rank[keep],
            found=self.found[keep],
            ignored=self.ignored[keep],
            truth_image=self.truth_image[truth],
            truth_category=self.truth_category[truth],
            truth_ignored=self.truth_ignored[truth],
        )


PairIoU = Callable[[Detections, Truth, Ints, Ints, float], Floats]
"""(detections, truth, P indices of detections, P of objects, lowest threshold) -> ``[P]`` IoUs.

Values below the threshold may be given as 0.
"""


def match(detections: Detections, truth: Truth, params: CocoParams, iou: PairIoU) -> Matches:
    """Assign detections to objects."""
    detections, truth, rank = _grouped(detections, truth, params)
    low, high = np.array(list(params.areas.values())).T
    outside = (detections.area[:, None] < low) | (detections.area[:, None] > high)
    truth_ignored = truth.crowd[:, None] | (truth.area[:, None] < low)
    truth_ignored |= truth.area[:, None] > high
    # COCO lets a threshold of 1 be reached in spite of rounding.
    thresholds = np.minimum(np.array(params.iou_thresholds), 1 - 1e-10)

    shape = (len(detections), len(thresholds), len(low))
    found, ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    taken = np.zeros((len(truth), *shape[1:]), np.bool_)
    for pair_det, pair_truth in _candidates(detections, truth):
        overlap = iou(detections, truth, pair_det, pair_truth, thresholds.min())
        keep = overlap >= thresholds.min()
        pairs = _Pairs(pair_det[keep], pair_truth[keep], overlap[keep])
        _assign(pairs, rank, thresholds, truth.crowd, truth_ignored, taken, found, ignored)
    ignored |= ~found & outside[:, None, :]
    return Matches(
        image=detections.image.astype(np.int32),
        category=detections.category.astype(np.int32),
        score=detections.score,
        rank=rank.astype(np.int32),
        found=found,
        ignored=ignored,
        truth_image=truth.image.astype(np.int32),
        truth_category=truth.category.astype(np.int32),
        truth_ignored=truth_ignored,
    )


def box_pair_iou(
    detections: Detections, truth: Truth, pair_det: Ints, pair_truth: Ints, _lowest: float
) -> Floats:
    """IoU of boxes in COCO's arithmetic: of a crowd, the share of the detection inside it."""
    inside = _box_intersection(detections.box[pair_det], truth.box[pair_truth])
    own = detections.box[:, 2] * detections.box[:, 3]
    other = truth.box[:, 2] * truth.box[:, 3]
    union = own[pair_det] + other[pair_truth] - inside
    union = np.where(truth.crowd[pair_truth], own[pair_det], union)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def mask_pair_iou(
    detections: Detections, truth: Truth, pair_det: Ints, pair_truth: Ints, lowest: float
) -> Floats:
    """IoU of run-length codes, for the pairs that can reach ``lowest`` by their areas."""
    assert detections.masks is not None
    assert truth.masks is not None
    own, other = detections.area[pair_det], truth.mask_area[pair_truth]
    most = np.minimum(own, other)
    union = np.where(truth.crowd[pair_truth], own, own + other - most)
    possible = np.flatnonzero((most > 0) & (most >= lowest * union * (1 - 1e-9)))
    result = np.zeros(len(pair_det))
    result[possible] = rle.pair_iou(
        detections.masks,
        truth.masks,
        pair_det[possible],
        pair_truth[possible],
        truth.crowd[pair_truth[possible]],
    )
    return result


@dataclass(frozen=True)
class _Pairs:
    """P candidate pairs, sorted by detection."""

    det: Ints
    truth: Ints
    iou: Floats

    def __getitem__(self, chosen: Ints) -> _Pairs:
        return _Pairs(self.det[chosen], self.truth[chosen], self.iou[chosen])


def _grouped(
    detections: Detections, truth: Truth, params: CocoParams
) -> tuple[Detections, Truth, Ints]:
    """Both sorted by image and category, detections then by score and cut off at the limit."""
    det_order = np.lexsort((-detections.score, detections.category, detections.image))
    truth_order = np.lexsort((truth.category, truth.image))
    if params.class_agnostic:
        # COCO lines up the categories before it sorts by score, which decides among ties.
        by_category = np.lexsort((detections.category, detections.image))
        keys = -detections.score[by_category], detections.image[by_category]
        det_order = by_category[np.lexsort(keys)]
    detections, truth = detections[det_order], truth[truth_order]
    if params.class_agnostic:
        detections = replace(detections, category=np.zeros_like(detections.category))
        truth = replace(truth, category=np.zeros_like(truth.category))
    categories = 1 + int(detections.category.max(initial=0))
    starts = np.flatnonzero(np.diff(_group(detections, categories), prepend=-1))
    lengths = np.diff(starts, append=len(detections))
    rank = np.arange(len(detections)) - np.repeat(starts, lengths)
    kept = np.flatnonzero(rank < params.max_detections[-1])
    return detections[kept], truth, rank[kept]


def _group(shapes: Detections | Truth, categories: int) -> Ints:
    return shapes.image * categories + shapes.category


def _candidates(detections: Detections, truth: Truth) -> Iterable[tuple[Ints, Ints]]:
    """All pairs of one image and category, some millions at a time, sorted by detection."""
    categories = 1 + int(max(detections.category.max(initial=0), truth.category.max(initial=0)))
    groups = _group(truth, categories)
    wanted = _group(detections, categories)
    first = np.searchsorted(groups, wanted, side="left")
    count = np.searchsorted(groups, wanted, side="right") - first
    ends = np.cumsum(count)
    begin = 0
    while begin < len(count):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, side="right")))
        chunk = slice(begin, end)
        pair_det = np.repeat(np.arange(begin, end), count[chunk])
        starts = np.repeat(ends[chunk] - count[chunk], count[chunk]) - before
        yield pair_det, np.arange(len(pair_det)) - starts + np.repeat(first[chunk], count[chunk])
        begin = end


def _assign(
    pairs: _Pairs,
    rank: Ints,
    thresholds: Floats,
    crowd: Bools,
    truth_ignored: Bools,
    taken: Bools,
    found: Bools,
    ignored: Bools,
) -> None:
    """Let detections choose, all images at once, first those of rank 0, then of rank 1, ...

    A detection takes the object of highest IoU, the later one of equals, and an ignored object
    only where no other is to be had. Crowds can be taken by many.
    """
    # Within a detection the better choice stands later.
    pairs = pairs[np.lexsort((pairs.truth, pairs.iou, pairs.det, rank[pairs.det]))]
    ranks = rank[pairs.det]
    turns = np.flatnonzero(np.diff(ranks, prepend=-1, append=-1))
    for begin, end in pairwise(turns):
        turn = pairs[np.arange(begin, end)]
        starts = np.flatnonzero(np.diff(turn.det, prepend=-1))
        place = np.arange(len(turn.det))
        free = ~taken[turn.truth] | crowd[turn.truth, None, None]
        free &= (turn.iou[:, None] >= thresholds)[:, :, None]
        # Objects that count come before all ignored ones.
        value = place[:, None] + len(place) * ~truth_ignored[turn.truth]
        best = np.maximum.reduceat(np.where(free, value[:, None, :], -1), starts, axis=0)
        det, t, a = np.nonzero(best >= 0)
        chosen = turn.truth[best[det, t, a] % len(place)]
        taken[chosen, t, a] = True
        who = turn.det[starts][det]
        found[who, t, a] = True
        ignored[who, t, a] = truth_ignored[chosen, a]


def _box_intersection(first: Floats, second: Floats) -> Floats:
    """Area that two lists of x, y, width, height share, pair by pair."""
    ends = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = ends - np.maximum(first[:, :2], second[:, :2])
    return np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
