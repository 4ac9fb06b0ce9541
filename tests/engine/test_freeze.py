"""Frozen parts stay as they are, to the bit, and what is frozen depends on the epoch alone."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from instseg.engine.freeze import FreezeRule, FreezeSchedule, feature_extraction, fine_tuning
from instseg.engine.optim import build_optimizer
from instseg.models.backbones import ResNet

from .tiny import (
    TinyLoader,
    TinyModel,
    assert_same_run,
    make_options,
    make_trainer,
    noisy_score,
)


def block(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))


class Backbone(nn.Module):
    """Two stages; the first one's batch norm it keeps frozen itself, as real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = block(3), block(4)
        self.stage1[1].requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.stage1[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stage2(self.stage1(x))
        return y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y


RULES = [FreezeRule(("backbone.stage1",), 3), FreezeRule(("backbone.stage2.*", "head.1"), 1)]
OWN = {"backbone.stage1.1.weight", "backbone.stage1.1.bias"}  # never train
STAGE1 = {"backbone.stage1.0.weight", "backbone.stage1.0.bias"}
STAGE2 = {f"backbone.stage2.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
NORM = {"head.1.weight", "head.1.bias"}


def without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def evaluating(model: nn.Module) -> set[str]:
    leaves = (nn.BatchNorm2d, nn.Dropout, nn.Conv2d)
    return {n for n, m in model.named_modules() if isinstance(m, leaves) and not m.training}


def test_what_is_frozen_when() -> None:
    model = Model()
    schedule = FreezeSchedule(model, RULES)
    assert without_gradient(model) == OWN  # making it changes nothing
    stage1 = {f"backbone.stage1.{i}" for i in range(3)}
    stage2 = {f"backbone.stage2.{i}" for i in range(3)}
    expected: list[tuple[bool, set[str], set[str]]] = [
        (True, OWN | STAGE1 | STAGE2 | NORM, stage1 | stage2 | {"head.1"}),
        (True, OWN | STAGE1, stage1),
        (False, OWN | STAGE1, stage1),
        (True, OWN, {"backbone.stage1.1"}),
        (False, OWN, {"backbone.stage1.1"}),
    ]
    for epoch, (changes, parameters, modules) in enumerate(expected):
        model.eval()  # as after an evaluation
        assert schedule.apply(model, epoch) is changes
        assert not schedule.apply(model, epoch)
        assert without_gradient(model) == parameters
        assert evaluating(model) == modules
    # In any order, and on a model that was made anew for a resume.
    for epoch in (2, 0, 4, 1):
        resumed = Model()
        schedule.apply(model, epoch)
        FreezeSchedule(resumed, RULES).apply(resumed, epoch)
        for one in (model, resumed):
            assert without_gradient(one) == expected[epoch][1]
            assert evaluating(one) == expected[epoch][2]


def training(
    model: nn.Module, optimizer: Optimizer, ema: AveragedModel, epochs: range
) -> Iterator[int]:
    """Steps of epochs, on data that depends on the epoch alone."""
    schedule = FreezeSchedule(model, RULES)
    for epoch in epochs:
        torch.manual_seed(epoch)
        schedule.apply(model, epoch)
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(2, 3, 4, 4)).square().mean().backward()
            optimizer.step()
            ema.update_parameters(model)
        yield epoch


def parts(name: str) -> tuple[nn.Module, Optimizer, AveragedModel]:
    model: nn.Module = Model()
    settings: dict[str, Any] = {"name": name, "lr": 0.1, "weight_decay": 0.1}
    average = get_ema_multi_avg_fn(0.9)
    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return model, build_optimizer(model, **settings), ema


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_frozen_part_does_not_move_and_has_no_state(name: str) -> None:
    """Neither by decay, nor by momentum, nor in its running figures, nor in the average."""
    model, optimizer, ema = parts(name)
    before = copy.deepcopy(model.state_dict())
    frozen_until = {"backbone.stage1.": 3, "backbone.stage2.": 1, "head.1.": 1, "head.0.": 0}
    for epoch in training(model, optimizer, ema, range(4)):
        state = model.state_dict()
        average = ema.module.state_dict()
        for prefix, until in frozen_until.items():
            for key in (k for k in state if k.startswith(prefix)):
                same = torch.equal(state[key], before[key])
                own = key.startswith("backbone.stage1.1.")
                assert same is (own or epoch < until), (epoch, key)
                if same:
                    assert torch.equal(average[key], before[key]), (epoch, key)
        for key, parameter in model.named_parameters():
            frozen = [until for prefix, until in frozen_until.items() if key.startswith(prefix)]
            trained = key not in OWN and all(epoch >= until for until in frozen)
            assert bool(optimizer.state.get(parameter)) is trained, (epoch, key)


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_resumed_training_is_bit_equal(start: int) -> None:
    """The checkpoint holds no word of what is frozen: the epoch says it."""
    whole, *rest = parts("adamw")
    saved: dict[str, Any] = {}
    for epoch in training(whole, *rest, range(4)):  # type: ignore[arg-type]
        if epoch == start - 1:
            states = [part.state_dict() for part in (whole, *rest)]
            saved = {"states": copy.deepcopy(states)}
    resumed = parts("adamw")
    for part, state in zip(resumed, saved["states"], strict=True):
        part.load_state_dict(state)
    for _ in training(*resumed, range(start, 4)):
        pass
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[key]), key
    for key, value in rest[1].state_dict().items():
        assert torch.equal(value, resumed[2].state_dict()[key]), key


def test_feature_extraction() -> None:
    model = Model()
    schedule = FreezeSchedule(model, feature_extraction(model))
    schedule.apply(model, 99)
    assert without_gradient(model) == {n for n, _ in model.named_parameters() if "backbone" in n}
    assert {name.split(".")[0] for name in evaluating(model)} == {"backbone"}
    # What never trains is no matter of the optimizer.
    (decay, no_decay) = build_optimizer(model, name="sgd", lr=0.1, weight_decay=0.1).param_groups
    assert [len(decay["params"]), len(no_decay["params"])] == [2, 4]
    assert schedule.describe() == "frozen in all epochs: backbone"


def test_fine_tuning_thaws_the_backbone_from_its_end() -> None:
    """A ResNet's 5 layers over the first 6 of 12 epochs: 2, 3, 4, 5, 6 epochs frozen."""
    model = nn.Module()
    model.backbone = ResNet(18, norm="live", freeze_at=0)
    model.head = nn.Linear(2, 2)
    rules = fine_tuning(model, 12)
    schedule = FreezeSchedule(model, rules)
    assert schedule.describe().splitlines() == [
        "frozen in epochs 1 to 2: backbone.layer4",
        "frozen in epochs 1 to 3: backbone.layer3",
        "frozen in epochs 1 to 4: backbone.layer2",
        "frozen in epochs 1 to 5: backbone.layer1",
        "frozen in epochs 1 to 6: backbone.conv1, backbone.bn1",
    ]
    trained = []
    for epoch in range(8):
        schedule.apply(model, epoch)
        names = {
            n.split(".")[1]
            for n, p in model.backbone.named_parameters(prefix="backbone")
            if p.requires_grad
        }
        trained.append(len(names))
    assert trained == [0, 0, 1, 2, 3, 4, 6, 6]
    assert [rule.until_epoch for rule in fine_tuning(model, 2)] == [1] * 5
    assert [rule.until_epoch for rule in fine_tuning(model, 40)] == [4, 8, 12, 16, 20]


def test_an_earlier_decision_of_the_model_stands() -> None:
    """`freeze_at` and frozen norms of a backbone outlast the thawing."""
    model = nn.Module()
    model.backbone = ResNet(18, norm="frozen", freeze_at=2)
    model.head = nn.Linear(2, 2)
    own = without_gradient(model)
    schedule = FreezeSchedule(model, fine_tuning(model, 4))
    assert schedule.apply(model, 0)
    assert schedule.apply(model, 3)
    assert without_gradient(model) == own
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert model.backbone.layer3[0].conv1.training


def test_schedules_that_make_no_sense() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"'backbon\.\*' matches no parameter .* backbone"):
        FreezeSchedule(model, [FreezeRule(("backbon.*",))])
    with pytest.raises(ValueError, match="first epoch would have nothing to train"):
        FreezeSchedule(model, [FreezeRule(("backbone",), 2), FreezeRule(("head",), 1)])
    with pytest.raises(ValueError, match="until_epoch must be at least 1, got 0"):
        FreezeRule(("head",), 0)
    with pytest.raises(ValueError, match="needs 2 epochs, got 1"):
        fine_tuning(model, 1)
    with pytest.raises(ValueError, match="no part named backbone or encoder"):
        feature_extraction(model.head)


def test_a_wrapper_built_anew_at_each_change_trains_as_the_bare_model() -> None:
    """`DistributedDataParallel` takes down once which parameters need gradients."""
    bare, optimizer, ema = parts("sgd")
    for _ in training(bare, optimizer, ema, range(4)):
        pass
    model, optimizer, _ = parts("sgd")
    schedule = FreezeSchedule(model, RULES)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        builds = 0
        for epoch in range(4):
            torch.manual_seed(epoch)
            if schedule.apply(model, epoch) or epoch == 0:
                wrapper = DistributedDataParallel(
                    model, static_graph=True, gradient_as_bucket_view=True
                )
                builds += 1
            for _ in range(3):
                model.zero_grad()
                wrapper(torch.randn(2, 3, 4, 4)).square().mean().backward()
                optimizer.step()
    finally:
        dist.destroy_process_group()
    assert builds == 3  # at epochs 0, 1 and 3
    for key, value in bare.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_a_frozen_part_begins_to_train_in_its_epoch_and_after_a_resume(tmp_path: Path) -> None:
    def build(run_dir: Path, stop_at: int | None = None) -> Any:
        def interrupt(batch: int) -> None:
            if batch == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        model = TinyModel()
        freeze = FreezeSchedule(model, [FreezeRule(("conv",), until_epoch=2)])
        loader = TinyLoader(on_batch=interrupt)
        options = make_options(epochs=4)
        return make_trainer(run_dir, model=model, freeze=freeze, loader=loader, options=options)

    start = TinyModel().conv.weight
    whole = build(tmp_path / "whole")
    seen = []
    whole.evaluate = lambda model: seen.append(model.conv.weight.clone()) or noisy_score(model)
    whole.run()
    assert torch.equal(seen[0], start)  # after two epochs
    assert not torch.equal(seen[1], start)
    assert build(tmp_path / "parts", stop_at=7).run().status == "interrupted"
    assert build(tmp_path / "parts", stop_at=13).run(resume=True).status == "interrupted"
    build(tmp_path / "parts").run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
