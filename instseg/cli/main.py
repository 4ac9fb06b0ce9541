"""The `instseg` command: one word chooses what `tools/*.py` do each on its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from instseg import __version__

_COMMANDS = {
    "replay": ("instseg.cli.replay", "repeat a step whose loss or gradient was not finite"),
    "train": ("instseg.cli.train", "train a model from a configuration file"),
    "eval": ("instseg.cli.evaluate", "COCO scores of a model or a result file"),
    "eval-maps": ("instseg.cli.eval_maps", "scores of class maps, membranes, nuclei, pictures"),
    "predict": ("instseg.cli.predict", "draw and save what a model sees in images"),
    "dataset": ("instseg.cli.dataset", "convert annotations to COCO JSON, check them"),
    "convert-weights": ("instseg.cli.convert_weights", "torchvision's checkpoints to instseg's"),
    "demo": ("instseg.cli.demo", "generate data, train a small Mask R-CNN on it, evaluate, draw"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``instseg COMMAND ...`` and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(__version__)
        return 0
    if not arguments or arguments[0] not in _COMMANDS:
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        lines = [f"  {name:16} {about}" for name, (_, about) in _COMMANDS.items()]
        text = "\n".join(["usage: instseg COMMAND ...", "", *lines])
        print(text, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    # Imported late: a command's --help need not wait for the libraries of the others.
    run: Callable[..., int] = import_module(_COMMANDS[arguments[0]][0]).main
    return run(arguments[1:], prog=f"instseg {arguments[0]}")
