"""Average precision of single images and of named sets of images, from matches already made."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from instseg.evaluation.accumulate import RECALLS, accumulate
from instseg.evaluation.bootstrap import draw_weights, replicate
from instseg.evaluation.matching import Matches
from instseg.evaluation.scores import BootstrapOptions, CocoScores, make_scores
from instseg.evaluation.slices import SliceError
from instseg.evaluation.tables import Bools, Floats, Ints, Vocabulary


def average_precision_of_images(matches: Matches, images: int) -> Floats:
    """``float64 [images]``: each image's own AP, the mean over the categories of its objects.

    It is COCO's AP of a data set of that image alone, to nine digits; NaN where an image has no
    object to find. Area ranges other than the first ("all") are not looked at.
    """
    counted = ~matches.truth_ignored[:, 0]
    width = 1 + int(max(matches.category.max(initial=0), matches.truth_category.max(initial=0)))
    own = matches.truth_image.astype(np.int64) * width + matches.truth_category
    groups, objects = np.unique(own[counted], return_counts=True)

    group = matches.image.astype(np.int64) * width + matches.category
    place = np.searchsorted(groups, group)
    known = np.append(groups, -1)[np.minimum(place, len(groups))] == group
    order = np.flatnonzero(known)
    order = order[np.lexsort((matches.rank[order], place[order]))]
    hits = matches.found[order, :, 0] & ~matches.ignored[order, :, 0]
    judged = ~matches.ignored[order, :, 0]
    averages = np.stack(
        [
            _average_precisions(hits[:, t], judged[:, t], place[order], objects)
            for t in range(hits.shape[1])
        ]
    ).mean(axis=0)
    of_image = (groups // width).astype(np.int64)
    total = np.bincount(of_image, averages, minlength=images)
    count = np.bincount(of_image, minlength=images)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def score_slices(
    matches: Matches,
    whole: CocoScores,
    vocabulary: Vocabulary,
    slices: Mapping[str, Collection[int]],
    options: BootstrapOptions,
) -> dict[str, CocoScores]:
    """COCO's figures and intervals on named sets of images.

    Args:
        matches: of all images.
        whole: the scores of all images; it knows parameters and categories.
        vocabulary: which ids the positions in ``matches`` stand for.
        slices: image ids by name.
        options: of the bootstrap.

    Raises:
        SliceError: a slice is empty or names an image that is not scored.
    """
    params, names = whole.params, list(whole.per_category)
    scores = {}
    for name, ids in slices.items():
        chosen = np.isin(vocabulary.images, np.array(list(ids), dtype=np.int64))
        if not ids or int(chosen.sum()) != len(set(ids)):
            unknown = sorted(set(ids) - set(vocabulary.images.tolist()))
            what = f"has unknown image ids {unknown[:5]}" if unknown else "is empty"
            raise SliceError(f"the slice {name!r} {what}")
        part = matches.on_images(chosen)
        replicates = None
        if options.replicates:
            weights = np.zeros((len(chosen), options.replicates), np.int32)
            weights[chosen] = draw_weights(int(chosen.sum()), options.replicates, options.seed)
            replicates = replicate(part, params, len(names), weights)
        scores[name] = make_scores(
            accumulate(part, params, len(names)),
            replicates,
            params,
            options,
            iou_type=whole.iou_type,
            categories=names,
            images=int(chosen.sum()),
            detections=len(part.image),
        )
    return scores


def _average_precisions(hits: Bools, judged: Bools, group: Ints, objects: Ints) -> Floats:
    """``[groups]`` average precisions at one threshold.

    Args:
        hits: ``bool [N]``, sorted by group, best score first.
        judged: ``bool [N]``: not ignored.
        group: ``int64 [N]``.
        objects: ``int64 [groups]``, how many there are to find.
    """
    first = np.searchsorted(group, np.arange(len(objects)))
    places = np.flatnonzero(hits)
    own = group[places]
    before = np.concatenate([[0], np.cumsum(hits)])[first][own]
    true = np.arange(1, len(places) + 1) - before
    judged_before = np.concatenate([[0], np.cumsum(judged)])[first][own]
    precision = true / (np.cumsum(judged)[places] - judged_before)
    # The highest precision from here to the group's end: groups are kept apart by whole numbers.
    apart = precision - 2.0 * own
    envelope = np.maximum.accumulate(apart[::-1])[::-1] + 2.0 * own
    passed = np.searchsorted(RECALLS, true / objects[own], side="right")
    passed_before = np.searchsorted(RECALLS, (true - 1) / objects[own], side="right")
    steps = passed - np.where(true == 1, 0, passed_before)
    return np.bincount(own, envelope * steps, minlength=len(objects)) / len(RECALLS)
