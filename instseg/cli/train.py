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
from instseg.cli.dry_run import dry_run
from instseg.cli.learner import build_learner
from instseg.cli.overfit import overfit, overfit_verdict
from instseg.config.build import build_device, build_early_stopping, build_options
from instseg.config.build_parts import build_parts
from instseg.config.loader import ConfigError, dump_config, load_config
from instseg.config.schema import Config
from instseg.config.trained import describe_weights, inference_config
from instseg.engine.atomic import write_file_atomic
from instseg.engine.checkpoint import CheckpointFolder
from instseg.engine.distributed import (
    first_before_others,
    is_writer,
    own_device,
    process_group,
    rank_and_size,
    wait_for_all,
)
from instseg.engine.errors import RunExistsError
from instseg.engine.evaluate import evaluate
from instseg.engine.loggers import CsvLogger, JsonlLogger
from instseg.engine.progress import make_progress
from instseg.engine.tensorboard_logger import TensorBoardLogger
from instseg.engine.trainer import Trainer, TrainResult

_logger = logging.getLogger(__name__)

_EPILOG = """\
examples:
  train_net.py --config configs/demo/mask_rcnn.yaml
  train_net.py --config my.yaml data.train.images=photos train.optimizer.lr=1e-3 --output runs/a
  train_net.py --config my.yaml --output runs/a --resume
  train_net.py --config my.yaml --dry-run
  torchrun --nproc-per-node 2 --max-restarts 3 tools/train_net.py --config my.yaml --resume

exit status: 0 finished, 2 an error that its message explains, 3 stopped by a signal (saved:
--resume); torchrun's own is 1 for the last two
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
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps, one evaluated batch and a checkpoint that goes again: memory, time, files",
    )
    parser.add_argument(
        "--overfit",
        type=int,
        metavar="N",
        help="train on N images and score on the same, to see whether they can be learnt at all",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change the config")
    args = parser.parse_intermixed_args(argv)
    return run(partial(_command, args))


def _command(args: argparse.Namespace) -> int:
    config = load_config(args.config, Config, args.overrides)
    if args.output is not None:
        config = config.model_copy(update={"output": args.output})
    with process_group():
        own_device(build_device(config))  # before anything is put on the first one by default
        if args.overfit is not None:
            config = first_before_others(partial(overfit, config, args.overfit))
        if args.dry_run:
            return dry_run(config)
        if not is_writer():
            logging.getLogger().setLevel(logging.WARNING)
        result = train(config, resume=args.resume)
        if args.overfit is not None and result.status == "finished" and is_writer():
            print(overfit_verdict(config))
        return 0 if result.status == "finished" else 3


def train(config: Config, *, resume: bool = False) -> TrainResult:
    """Train as the configuration says; everything the run leaves is in ``config.output``.

    In a process group all processes call it, and share the work of one training.

    Args:
        config: what to do.
        resume: go on from the last checkpoint in that folder, if there is one.

    Raises:
        ConfigError, AnnotationError, FormatError, ImageError, EngineError: see their messages.
    """
    config, replicas = with_replicas(config, resume=resume)
    check_folder(config, resume=resume)
    options = build_options(config, replicas)
    parts = first_before_others(lambda: build_parts(config))
    names = [category["name"] for category in parts.categories]
    learner = build_learner(config, names, len(parts.train_loader), replicas=replicas)
    _logger.info("%s, on %s", parts.summary, learner.device)
    _logger.info("%s", learner.description)

    def score(model: nn.Module) -> dict[str, dict[str, float]]:
        scores = evaluate(
            model, parts.val_loader, parts.evaluator, device=learner.device, amp=config.train.amp
        )
        return {kind: dict(result.stats) for kind, result in scores.items()}

    wait_for_all()  # until every process has looked into the folder
    if is_writer():
        describe_run(config)
    run_dir = config.output
    trainer = Trainer(
        learner.model,
        learner.optimizer,
        learner.schedule,
        parts.train_loader,
        options=options,
        run_dir=run_dir,
        evaluate=score,
        loggers=[
            JsonlLogger(run_dir / "metrics.jsonl"),
            CsvLogger(run_dir / "metrics.csv"),
            TensorBoardLogger(run_dir / "tensorboard"),
        ],
        freeze=learner.freeze,
        sharding=learner.sharding,
        early_stopping=build_early_stopping(config),
        weights_metadata=describe_weights(inference_config(config), parts.categories),
        progress=make_progress(CONSOLE),
    )
    return trainer.run(resume=resume)


def with_replicas(config: Config, *, resume: bool) -> tuple[Config, int]:
    """The configuration with its number of replicas, and that number.

    A run keeps the number it was begun with; a new one has as many as there are processes.

    Raises:
        ConfigError: a step has fewer batches than there are processes to share them.
    """
    processes = rank_and_size()[1]
    replicas = config.train.replicas
    if replicas is None:
        saved = config.output / "config.yaml"
        if resume and saved.is_file() and CheckpointFolder(config.output).exists():
            replicas = load_config(saved, Config).train.replicas or 1
        else:
            replicas = processes
    batches = config.train.accumulate * replicas
    if batches < processes:
        raise ConfigError(
            f"train.accumulate x train.replicas is {batches}: a step has too few batches to share "
            f"among {processes} processes; start {batches}, or a new run with more"
        )
    train = config.train.model_copy(update={"replicas": replicas})
    return config.model_copy(update={"train": train}), replicas


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
        write_file_atomic(saved, dump_config(config).encode())
    packages = ("instseg", "torch", "torchvision", "numpy", "opencv-python-headless", "hotcoco")
    versions = {name: version(name) for name in packages}
    versions |= {"python": platform.python_version(), "platform": platform.platform()}
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    text = json.dumps(versions, indent=2) + "\n"
    write_file_atomic(config.output / "versions.json", text.encode())


# What may differ when a run goes on: it changes how the work is done, not its result. A run that
# has got this far has met no fault that the settings for faults did not allow.
_FREE_KEYS = (
    "output",
    "data.workers",
    "data.on_error",
    "data.start_method",
    "data.on_worker_fault",
    "data.worker_timeout",
    "train.log_every",
    "train.save_every",
    "train.on_nonfinite",
    "train.nonfinite_patience",
    "train.on_out_of_memory",
    "train.parallelism",
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
