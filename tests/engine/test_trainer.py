"""The loop: what is logged, kept, refused and stopped."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instseg.engine.checkpoint import read_checkpoint
from instseg.engine.errors import NonFiniteLossError, RunExistsError
from instseg.engine.options import TrainerOptions
from instseg.engine.weights import load_weights

from .tiny import (
    TinyLoader,
    TinyModel,
    assert_same_run,
    make_batch,
    make_options,
    make_trainer,
    read_rows,
)


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_weights(run_dir / "final.safetensors")[0]


# --- rows ---------------------------------------------------------------------------------------


def test_rows(tmp_path: Path) -> None:
    """Five batches an epoch, two a step: three steps an epoch, a row every two steps."""
    trainer = make_trainer(tmp_path, options=make_options(epochs=3, log_every=2))
    trainer.run()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    places = [(row["kind"], row["step"], row["epoch"]) for row in rows]
    assert places == [
        ("train", 2, 1),
        ("train", 4, 2),
        ("train", 6, 2),
        ("eval", 6, 2),
        ("train", 8, 3),
        ("train", 9, 3),
        ("eval", 9, 3),
    ]
    first = rows[0]
    # Warm-up from 0.1 to 1 in four steps; the row tells the rate of its last step, number 1.
    assert first["lr"] == pytest.approx(0.05 * 0.325)
    assert first["loss"] == pytest.approx(first["loss_fit"] + first["loss_size"])
    assert first["grad_norm"] > 0
    assert first["images_per_second"] > 0
    assert 0 < first["data_wait"] < 1
    assert rows[3].keys() == {"kind", "step", "epoch", "segm/AP", "segm/AP50", "bbox/AP"}


def test_a_row_holds_means_over_its_steps(tmp_path: Path) -> None:
    single, double = tmp_path / "single", tmp_path / "double"
    make_trainer(single, options=make_options(epochs=2, log_every=1)).run()
    make_trainer(double, options=make_options(epochs=2, log_every=2)).run()
    one = [row for row in read_rows(single) if row["kind"] == "train"]
    two = [row for row in read_rows(double) if row["kind"] == "train"]
    for index, row in enumerate(two):
        a, b = one[2 * index : 2 * index + 2]
        for key in ("loss", "loss_fit", "grad_norm"):
            assert row[key] == pytest.approx((a[key] + b[key]) / 2)


# --- evaluation and weights files ---------------------------------------------------------------


def test_evaluation_does_not_change_the_training(tmp_path: Path) -> None:
    make_trainer(tmp_path / "with", options=make_options(eval_every=1)).run()
    make_trainer(tmp_path / "without", evaluate=None).run()
    with_, without = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(with_[key], without[key]) for key in with_ | without)
    assert not (tmp_path / "without" / "best.safetensors").exists()


def test_workers_do_not_change_the_training(tmp_path: Path) -> None:
    for workers in (0, 2):
        loader = TinyLoader(workers=workers)
        make_trainer(tmp_path / str(workers), loader=loader, options=make_options(epochs=2)).run()
    none, two = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(torch.equal(none[key], two[key]) for key in none | two)


def test_the_seed_changes_the_training(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_trainer(tmp_path / str(seed), options=make_options(epochs=1, seed=seed)).run()
    zero, one = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert not torch.equal(zero["conv.weight"], one["conv.weight"])


def test_evaluations_are_every_n_epochs_and_at_the_end(tmp_path: Path) -> None:
    scored: list[nn.Module] = []

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        scored.append(model)
        return {"segm": {"AP": 0.5}}

    options = make_options(epochs=5, eval_every=2)
    trainer = make_trainer(tmp_path, options=options, evaluate=evaluate)
    result = trainer.run()
    assert [r["epoch"] for r in read_rows(tmp_path) if r["kind"] == "eval"] == [2, 4, 5]
    assert trainer.updater.ema is not None
    assert all(model is trainer.updater.ema.module for model in scored)
    assert result.best is not None
    assert result.best.epoch == 2  # an equal score later is no better


def test_checkpoints_at_the_end_of_an_epoch_and_before_an_evaluation(tmp_path: Path) -> None:
    points: list[tuple[int, int]] = []

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        for name in ("previous", "last"):
            _, header = read_checkpoint(tmp_path / f"{name}.safetensors")
            points.append((header.step, header.epoch))
        return {"segm": {"AP": 0.5}}

    options = make_options(epochs=2, checkpoint_every=100)
    make_trainer(tmp_path, options=options, evaluate=evaluate).run()
    assert points == [(3, 1), (6, 1)]  # epoch 1 closed; epoch 2 trained, but not closed


def test_best_and_final_weights_stand_for_themselves(tmp_path: Path) -> None:
    scores = iter([0.2, math.nan, 0.7, 0.4])
    averages: list[Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        averages.append(model.get_parameter("conv.weight").detach().clone())
        return {"segm": {"AP": 0.9}, "bbox": {"AP": next(scores)}}

    options = make_options(epochs=4, eval_every=1, best_metric="bbox/AP")
    result = make_trainer(tmp_path, options=options, evaluate=evaluate).run()
    assert result.best is not None
    assert (result.best.metric, result.best.value) == ("bbox/AP", 0.7)
    assert (result.best.step, result.best.epoch) == (9, 3)
    for name, average in (("best", averages[2]), ("final", averages[3])):
        tensors, metadata = load_weights(tmp_path / f"{name}.safetensors")
        assert tensors.keys() == TinyModel().state_dict().keys()
        assert torch.equal(tensors["conv.weight"], average)
        about = json.loads(metadata["instseg"])
        assert about["config"] == "epochs: 8\n"
        assert about["categories"] == [{"id": 5, "name": "cell"}]
        assert about["best"]["value"] == 0.7
        assert about["step"] == {"best": 9, "final": 12}[name]


def test_an_unknown_best_metric_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, options=make_options(best_metric="mask/AP"))
    with pytest.raises(ValueError, match="'mask/AP' is none of the scores: segm/AP, segm/AP50, bb"):
        trainer.run()


# --- images that cannot be read -----------------------------------------------------------------


def test_empty_batches_count_as_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Step 2 loses both its batches, step 4 one of two."""
    loader = TinyLoader(empty=frozenset({(0, 2), (0, 3), (1, 0)}))
    lrs: list[float] = []
    trainer = make_trainer(tmp_path, options=make_options(epochs=2, log_every=1), loader=loader)
    before = trainer.updater.apply
    trainer.updater.apply = lambda: (  # type: ignore[method-assign]
        lrs.append(trainer.optimizer.param_groups[0]["lr"]),
        before(),
    )[1]
    result = trainer.run()
    assert result.step == 6
    assert lrs == pytest.approx([0.05 * f for f in (0.1, 0.55, 0.775, 1.0, 1.0)])
    rows = [row for row in read_rows(tmp_path) if row["kind"] == "train"]
    assert ["loss" in row for row in rows] == [True, False, True, True, True, True]
    assert "step 2: 2 of 2 batches are empty" in caplog.text
    assert "step 4: 1 of 2 batches are empty" in caplog.text


def test_what_a_loader_raises_costs_no_step(tmp_path: Path) -> None:
    """Five batches an epoch, two a step: batch 9 belongs to the sixth step."""
    options = make_options(checkpoint_every=99)
    make_trainer(tmp_path / "whole", options=options).run()

    def fail(batch: int) -> None:
        if batch == 9:
            raise OSError("photo.jpg: cannot be read")

    broken = TinyLoader(on_batch=fail)
    with pytest.raises(OSError, match=r"photo\.jpg"):
        make_trainer(tmp_path / "parts", options=options, loader=broken).run()
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1].step == 5
    make_trainer(tmp_path / "parts", options=options).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_loader_shorter_than_it_says(tmp_path: Path) -> None:
    class Short(TinyLoader):
        def __len__(self) -> int:
            return 7

    with pytest.raises(RuntimeError, match="ended epoch 0 in step 2, but its length is 7"):
        make_trainer(tmp_path, loader=Short()).run()


def test_an_empty_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        make_trainer(tmp_path, loader=TinyLoader(images=0))


# --- losses that are not finite -----------------------------------------------------------------


class FailingModel(TinyModel):
    """Its loss is bad wherever a certain image comes first."""

    def __init__(self, value: float, image_id: int) -> None:
        super().__init__()
        self.value = value
        self.bad = make_batch([image_id]).images[0]

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        losses = super().forward(images, targets)
        if targets is not None and torch.equal(images[0], self.bad):
            losses["loss_fit"] = losses["loss_fit"] * self.value
        return losses


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_stops_at_once_and_leaves_a_black_box(tmp_path: Path, value: float) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    model = FailingModel(value, order[8])  # in the fifth batch, the only one of step 3
    trainer = make_trainer(tmp_path, model=model, options=make_options(epochs=2))
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.run()
    message = str(caught.value)
    assert message.startswith(f"step 3 (epoch 1, lr 0.0275): loss is {value}, loss_fit is {value}")
    folder = tmp_path / "black_box" / "step-000003"
    assert str(folder) in message
    dump = json.loads((folder / "report.json").read_text())
    assert (dump["step"], dump["epoch"], dump["lr"]) == (3, 1, pytest.approx(0.0275))
    assert dump["problem"] in message
    assert dump["grad_norm"] == "nan"
    (batch,) = dump["batches"]
    assert batch["image_ids"] == order[8:]
    assert batch["paths"] == [f"{i}.png" for i in order[8:]]
    assert batch["losses"]["loss_fit"] == str(value)
    assert 0 < batch["losses"]["loss_size"] < 10
    # The weights are those of the last good step, and so is the checkpoint.
    tensors, header = read_checkpoint(tmp_path / "last.safetensors")
    assert header.step == 2
    assert torch.equal(tensors["model.conv.weight"], model.conv.weight.detach())
    assert torch.equal(tensors["model.norm.running_mean"], model.norm.running_mean)


def test_bad_steps_are_skipped_up_to_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of the five steps of each epoch is left out; three in a row would be too many."""
    options = make_options(epochs=2, accumulate=1, on_nonfinite="skip", nonfinite_patience=3)
    model = FailingModel(math.nan, 4)
    assert make_trainer(tmp_path / "some", model=model, options=options).run().step == 10
    left_out = sorted(path.name for path in (tmp_path / "some" / "black_box").iterdir())
    assert 1 <= len(left_out) <= 2  # image 4 comes first or second in its batch
    assert caplog.text.count("The step was left out.") == len(left_out)
    assert all(p.isfinite().all() for p in model.parameters())
    rows = [row for row in read_rows(tmp_path / "some") if row["kind"] == "train"]
    assert all(math.isfinite(row["loss"]) for row in rows)

    class AlwaysFailing(TinyModel):
        def forward(self, images: list[Tensor], targets: Any = None) -> Any:
            losses = super().forward(images, targets)
            return losses if targets is None else losses | {"loss_fit": losses["loss_fit"] / 0}

    with pytest.raises(NonFiniteLossError, match="3 steps in a row"):
        make_trainer(tmp_path / "all", model=AlwaysFailing(), options=options).run()
    assert len(list((tmp_path / "all" / "black_box").iterdir())) == 3


# --- runs there were ----------------------------------------------------------------------------


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    make_trainer(tmp_path, options=make_options(epochs=1)).run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunExistsError, match=r"--resume .* or choose another output folder"):
        make_trainer(tmp_path).run()
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(RunExistsError):
        make_trainer(tmp_path).run()
    for path, data in before.items():
        assert path.name == "last.safetensors" or path.read_bytes() == data


def test_resume_without_a_checkpoint_starts_from_scratch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path / "fresh", options=make_options(epochs=1)).run()
    (tmp_path / "resumed").mkdir()
    (tmp_path / "resumed" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "epoch": 1}')
    with caplog.at_level(logging.INFO):
        make_trainer(tmp_path / "resumed", options=make_options(epochs=1)).run(resume=True)
    assert f"no checkpoint in {tmp_path / 'resumed'}: starting from scratch" in caplog.text
    assert read_rows(tmp_path / "fresh") == read_rows(tmp_path / "resumed")


# --- signals ------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(batch: int) -> None:
        if batch == 5:  # in the first of two batches of step 4
            os.kill(os.getpid(), number)

    before = handlers()
    result = make_trainer(tmp_path, loader=TinyLoader(on_batch=interrupt)).run()
    assert (result.status, result.step, result.epoch) == ("interrupted", 4, 1)
    assert handlers() == before
    assert f"{number.name}: finishing this step, then saving" in caplog.text
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step == 4
    assert not (tmp_path / "final.safetensors").exists()


def test_a_signal_in_an_evaluation_waits_for_its_score(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> dict[str, dict[str, float]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"segm": {"AP": 0.5}}

    result = make_trainer(tmp_path, evaluate=evaluate).run()
    assert (result.status, result.step, result.epoch) == ("interrupted", 6, 2)
    assert read_rows(tmp_path)[-1]["segm/AP"] == 0.5


def test_a_second_sigint_aborts_at_once(tmp_path: Path) -> None:
    def interrupt(batch: int) -> None:
        if batch in (5, 6):
            os.kill(os.getpid(), signal.SIGINT)

    before = handlers()
    trainer = make_trainer(tmp_path, loader=TinyLoader(on_batch=interrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert handlers() == before
    assert read_checkpoint(tmp_path / "last.safetensors")[1].step < 4


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"log_every": -1}, "log_every must be"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerOptions(**{"epochs": 1} | changes)
