"""Train instseg's and torchvision's Mask R-CNN alike on Penn-Fudan and compare their AP.

    python -m benchmarks.accuracy_vs_torchvision --seeds 0 [--device cuda]

Both sides have the same backbone weights, images, sizes, batches, optimiser, schedule, precision
and evaluator; each has its own model code, initialisation and defaults. Prints and writes
results/accuracy_vs_torchvision.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from benchmarks.common import write
from benchmarks.torchvision_peer import TorchvisionMaskRCNN
from instseg.cli.common import set_up_logging
from instseg.config.build import (
    build_device,
    build_evaluator,
    build_model,
    build_optimizer,
    build_options,
    build_schedule,
    build_train_loader,
    build_val_loader,
    read_index,
    read_val_index,
)
from instseg.config.loader import load_config
from instseg.config.schema import Config
from instseg.engine.evaluate import evaluate
from instseg.engine.rng import seed_everything
from instseg.engine.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "pennfudan" / "mask_rcnn_lite0_fpn.yaml"
METRICS = ("AP", "AP50", "AP75")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args()
    set_up_logging()

    runs = []
    for seed in args.seeds:
        config = load_config(args.config, Config, [*args.overrides, f"train.seed={seed}"])
        for side, model in (("instseg", build_model), ("torchvision", TorchvisionMaskRCNN)):
            run = train_and_score(config, partial(model, config.model, num_classes=1))
            runs.append({"side": side, "seed": seed, **run})
            print(runs[-1], flush=True)
    seeds = " ".join(map(str, args.seeds))
    content = {
        "command": f"python -m benchmarks.{Path(__file__).stem} --seeds {seeds}",
        "config": config.model_dump(mode="json"),
        "runs": runs,
        "means": {side: mean_scores(runs, side) for side in ("instseg", "torchvision")},
    }
    print(content["means"])
    print(write("accuracy_vs_torchvision", content))


def train_and_score(config: Config, make_model: partial[nn.Module]) -> dict[str, object]:
    """Train from the seed on; the scores of the last weights, and the minutes it took."""
    train_index, val_index = read_index(config.data.train, need_masks=True), read_val_index(config)
    loader = build_train_loader(config, train_index)
    device = build_device(config)
    seed_everything(config.train.seed)
    model = make_model().to(device)
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        result = Trainer(
            model,
            build_optimizer(config, model),
            build_schedule(config, len(loader)),
            loader,
            options=build_options(config),
            run_dir=Path(folder),
        ).run()
    if result.status != "finished":
        raise SystemExit("interrupted: a training that was cut short says nothing")
    minutes = (time.monotonic() - started) / 60
    evaluator = build_evaluator(config, val_index, train_index.class_names)
    scores = evaluate(
        model, build_val_loader(config, val_index), evaluator, device=device, amp=config.train.amp
    )
    return {
        "training_minutes": round(minutes, 1),
        **{f"{kind}/{m}": round(s.stats[m], 4) for kind, s in scores.items() for m in METRICS},
    }


def mean_scores(runs: list[dict[str, object]], side: str) -> dict[str, float]:
    """The mean of each score over the seeds."""
    own = [run for run in runs if run["side"] == side]
    keys = [key for key in own[0] if "/" in key]
    return {key: round(statistics.mean(float(run[key]) for run in own), 4) for key in keys}


if __name__ == "__main__":
    main()
