"""`instseg train`: train a model from a configuration file."""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from instseg.cli.common import CONSOLE, run
from instseg.config.build import (
    build_device,
    build_model,
    build_optimizer,
    build_options,
    build_schedule,
)
from instseg.config.build_parts import build_parts
from instseg.config.loader import ConfigError, dump_config, load_config
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config, load_initial
from instseg.engine.checkpoint import CheckpointFolder
from instseg.engine.errors import RunExistsError
from instseg.engine.evaluate import evaluate
from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.optim import describe_groups
from instseg.engine.progress import make_progress
from instseg.engine.rng import seed_everything
from instseg.engine.tensorboard_logger import TensorBoardLogger
from instseg.engine.trainer import Trainer, TrainResult

_logger = logging.getLogger(__name__)

_EPILOG = """\
examples:
  train_net.py --config configs/demo/mask_rcnn.yaml
  train_net.py --config my.yaml data.train.images=photos train.optimizer.lr=1e-3 --output runs/a
  train_net.py --config my.yaml --output runs/a --resume

exit status: 0 finished, 2 unusable configuration or data, 3 stopped by a signal (saved: --resume)
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with ``argv`` and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train a model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file")
    parser.add_argument("--output", type=Path, help="folder of the run, in place of the config's")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    args = parser.parse_intermixed_args(argv)
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    config = load_config(args.config, Config, args.overrides)
    if args.output is not None:
        config = config.model_copy(update={"output": args.output})
    result = train(config, resume=args.resume)
    return 0 if result.status == "finished" else 3


def train(config: Config, *, resume: bool = False) -> TrainResult:
    """Train as the configuration says; everything the run leaves is in ``config.output``.

    Args:
        config: what to do.
        resume: go on from the last checkpoint in that folder, if there is one.

    Raises:
        ConfigError, AnnotationError, FormatError, ImageError, EngineError: see their messages.
    """
    check_folder(config, resume=resume)
    options = build_options(config)
    parts = build_parts(config)
    names = [category["name"] for category in parts.categories]

    # Seeded before the model is made, so that its random weights are a function of the seed too.
    seed_everything(config.train.seed)
    device = build_device(config)
    model = build_model(config.model, num_classes=len(names)).to(device)
    if config.train.init_from is not None:
        load_initial(model, config.train.init_from, names)
    optimizer = build_optimizer(config, model)
    _logger.info("%s, on %s", parts.summary, device)
    _logger.info("%s", describe_groups(optimizer))

    def score(model: nn.Module) -> dict[str, dict[str, float]]:
        scores = evaluate(
            model, parts.val_loader, parts.evaluator, device=device, amp=config.train.amp
        )
        return {kind: dict(result.stats) for kind, result in scores.items()}

    describe_run(config)
    run_dir = config.output
    trainer = Trainer(
        model,
        optimizer,
        build_schedule(config, len(parts.train_loader)),
        parts.train_loader,
        options=options,
        run_dir=run_dir,
        evaluate=score,
        loggers=[
            JsonlLogger(run_dir / "metrics.jsonl"),
            CsvLogger(run_dir / "metrics.csv"),
            TensorBoardLogger(run_dir / "tensorboard"),
        ],
        weights_metadata=describe_weights(inference_config(config), parts.categories),
        progress=make_progress(CONSOLE),
    )
    return trainer.run(resume=resume)


def check_folder(config: Config, *, resume: bool) -> None:
    """Refuse to mix two runs in one folder, before any work is done.

    Raises:
        RunExistsError: the folder holds a checkpoint, and ``resume`` is False.
        ConfigError: the run in the folder was begun with another configuration.
    """
    if not CheckpointFolder(config.output).exists():
        return
    if not resume:
        raise RunExistsError(
            f"{config.output} holds a run: pass --resume to go on with it, or choose another "
            "--output"
        )
    saved = config.output / "config.yaml"
    if saved.is_file() and (changed := changed_keys(load_config(saved, Config), config)):
        raise ConfigError(
            f"{saved} says otherwise in {', '.join(changed)}: a resumed run goes on as it was "
            "begun. Undo the change, or choose another --output"
        )


def describe_run(config: Config) -> None:
    """Save the resolved configuration and the versions in the run's folder.

    A run that goes on keeps the configuration it was begun with.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    saved = config.output / "config.yaml"
    if not saved.is_file() or not CheckpointFolder(config.output).exists():
        saved.write_text(dump_config(config))
    packages = ("instseg", "torch", "torchvision", "numpy", "opencv-python-headless", "hotcoco")
    versions = {name: version(name) for name in packages}
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    (config.output / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


# What may differ when a run goes on: it changes how the work is done, not its result. A run that
# has got this far has met no broken file that its `data.on_error` did not allow.
_FREE_KEYS = (
    "output",
    "data.workers",
    "data.on_error",
    "train.log_every",
    "train.save_every",
    "train.device",
)


def changed_keys(before: Config, after: Config) -> list[str]:
    """Dotted names of the settings that differ and matter for the result."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    return sorted(key for key in differing if key not in _FREE_KEYS)


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
