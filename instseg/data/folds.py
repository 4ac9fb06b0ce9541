"""Parts of a COCO dictionary: a selection of its images, and the folds of cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

Part = Literal["train", "val"]


def select_images(coco: dict[str, Any], keep: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The dictionary without the images that ``keep`` refuses, and without their annotations.

    Ids, categories, other keys and the order stay. A record that cannot be assigned (an annotation
    of an image that is not there, an image without id or name) stays too, for the check to report.
    """
    images = [image for image in coco["images"] if _is_assignable(image)]
    dropped = {image["id"] for image in images if not keep(image)}

    def stays(record: Any, key: str) -> bool:
        value = record.get(key) if isinstance(record, dict) else None
        return not (isinstance(value, int) and value in dropped)

    return {
        **coco,
        "images": [image for image in coco["images"] if stays(image, "id")],
        "annotations": [a for a in coco["annotations"] if stays(a, "image_id")],
    }


def _is_assignable(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and isinstance(image.get("id"), int)
        and isinstance(image.get("file_name"), str)
    )


def take_fold(coco: dict[str, Any], *, folds: int, index: int, part: Part) -> dict[str, Any]:
    """One part of one fold.

    The images are sorted by file name; every ``folds``-th of them, from position ``index`` on,
    is in the val part of that fold, all others are in its train part.

    Args:
        coco: a COCO dictionary.
        folds: number of folds, at least 2.
        index: which fold, from 0 to ``folds - 1``.
        part: ``"train"`` or ``"val"``.

    Raises:
        ValueError: ``folds``, ``index`` or ``part`` is out of range.
    """
    if folds < 2 or not 0 <= index < folds:
        raise ValueError(f"folds must be >= 2 and 0 <= index < folds, got {folds} and {index}")
    if part not in ("train", "val"):
        raise ValueError(f"part must be 'train' or 'val', got {part!r}")
    names = sorted(image["file_name"] for image in coco["images"] if _is_assignable(image))
    val = set(names[index::folds])
    return select_images(coco, lambda image: (image["file_name"] in val) == (part == "val"))


def take_names(
    coco: dict[str, Any], *, include: Sequence[str] | None, exclude: Sequence[str]
) -> dict[str, Any]:
    """The images whose file names match patterns of `fnmatch`, in which ``*`` matches ``/`` too.

    Args:
        coco: a COCO dictionary.
        include: a name has to match one of these; None takes all.
        exclude: and none of these.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def keep(image: dict[str, Any]) -> bool:
        name = image["file_name"]
        return (include is None or matches(name, include)) and not matches(name, exclude)

    return select_images(coco, keep)
