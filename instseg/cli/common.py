"""What the commands share: logging, and turning expected errors into one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from instseg.config.loader import ConfigError
from instseg.data.coco import AnnotationError
from instseg.data.formats.common import FormatError
from instseg.data.image_io import ImageError
from instseg.data.shards.errors import FetchError, ShardError
from instseg.data.worker_faults import WorkerError
from instseg.engine.errors import EngineError
from instseg.evaluation.ground_truth import GroundTruthError
from instseg.evaluation.results import ResultsError
from instseg.evaluation.slices import SliceError

# Errors whose message tells the user what to mend. Anything else is a defect of instseg, and its
# traceback is wanted.
_EXPECTED = (
    AnnotationError,
    ConfigError,
    EngineError,
    FormatError,
    FetchError,
    GroundTruthError,
    ImageError,
    OSError,
    ResultsError,
    ShardError,
    SliceError,
    WorkerError,
)


_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

# One console, so that log lines and progress bars do not write over each other.
CONSOLE = Console(stderr=True)


def set_up_logging() -> None:
    """Log lines on stderr, above the progress bar."""
    handler = RichHandler(console=CONSOLE, show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)


def run(command: Callable[[], int]) -> int:
    """Run a command; an expected error becomes a line on stderr and the exit status 2."""
    set_up_logging()
    try:
        return command()
    except _EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def image_files(given: Iterable[Path]) -> Iterator[Path]:
    """The image files among ``given``, and those in its folders, sorted within each.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    for path in given:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        elif path.is_file():
            yield path
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
