"""A Mask R-CNN sharded among two processes under torchrun: trained, scored, gone on with by one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instseg.cli import evaluate, train
from instseg.engine.checkpoint import read_checkpoint

from .tiny import STEPS, refused, rows, write_config
from .torchrun import finish, pair, wait_for_step

pytestmark = pytest.mark.slow

FSDP = ("train.parallelism=fsdp", "train.clip_norm=null")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """The folder of a run in two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    with pair(write_config(folder, shapes), folder / "run", *FSDP) as process:
        (said,) = finish(process)
    assert "in shards over 2 processes, 5 units" in said
    return folder / "run"


def test_it_trains_as_one_process_does(sharded: Path, config: Path, tmp_path: Path) -> None:
    argv = ["--config", str(config), "--output", str(tmp_path), "train.replicas=2", FSDP[1]]
    assert train.main(argv) == 0
    mine, theirs = rows(sharded, "train"), rows(tmp_path, "train")
    assert len(mine) == len(theirs) == STEPS // 2
    # Later ties of samples and boxes break otherwise: a product of matrices in another memory
    # rounds in another way.
    for row, expected in zip(mine[:5], theirs, strict=False):
        for key in ("loss", "grad_norm", "lr"):
            assert row[key] == pytest.approx(expected[key], rel=1e-4)


def test_its_weights_are_scored_as_any_models(sharded: Path, config: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    argv = ["--config", str(config), "--weights", str(sharded / "final.safetensors")]
    assert evaluate.main([*argv, "--json", str(scores), "train.device=cpu"]) == 0
    found = json.loads(scores.read_text())["segm"]["stats"]["AP"]
    assert found == pytest.approx(rows(sharded, "eval")[-1]["segm/AP"])


def test_one_process_goes_on_with_the_shards_of_two(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pair(config, run, *FSDP) as process:
        wait_for_step(run, 4, process)
        process.terminate()
        process.communicate(timeout=120)
    _, header = read_checkpoint(run / "last.safetensors")
    assert header.shards is not None
    assert header.step < STEPS // 2
    argv = ["--config", str(config), "--output", str(run), "--resume", FSDP[1]]
    assert train.main(argv) == 0
    assert rows(run, "train")[-1]["step"] == STEPS // 2
    assert not list(run.glob("shards-*"))


def test_what_does_not_go_together(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(config), "--output", str(tmp_path), *FSDP]
    argv.append("train.on_out_of_memory=split")
    refused(train.main, argv, capsys, "fsdp waits for all of them")
