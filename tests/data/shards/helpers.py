"""What the tests of shards look at."""

from pathlib import Path

from instseg.data.shards.errors import ShardError
from instseg.data.shards.open import MEMBER_KEY


def by_id(annotations) -> list:
    return sorted(annotations, key=lambda a: a["id"])


def member_paths(shards) -> dict[str, Path]:
    """The path of each image by its own file name."""
    images = shards.coco_with_members()["images"]
    return {image["file_name"]: shards.folder / image[MEMBER_KEY] for image in images}


def error_or_result(call):
    """(message of the ShardError, None), or ("", what the call returns)."""
    try:
        return "", call()
    except ShardError as error:
        return str(error), None
