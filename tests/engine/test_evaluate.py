"""Evaluation: right coordinates, and no trace in the training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from instseg.engine.evaluate import evaluate
from instseg.structures import Instances

from .tiny import TinyLoader, TinyModel

CPU = torch.device("cpu")


@dataclass
class Count:
    stats: dict[str, float]


@dataclass
class Recorder:
    seen: dict[int, Instances] = field(default_factory=lambda: {-1: Instances.empty((1, 1))})

    def reset(self) -> None:
        self.seen = {}

    def update(self, image_ids: Sequence[int], predictions: Sequence[Instances]) -> None:
        self.seen |= dict(zip(image_ids, predictions, strict=True))

    def compute(self) -> dict[str, Count]:
        return {"bbox": Count({"n": float(len(self.seen))})}


def test_predictions_go_back_to_the_original_size() -> None:
    """The images are 8 x 8, their files 16 x 24: y doubles, x triples."""
    recorder = Recorder()
    scores = evaluate(TinyModel(), TinyLoader(), recorder, device=CPU)
    assert scores["bbox"].stats == {"n": 10.0}
    assert sorted(recorder.seen) == list(range(10))
    for prediction in recorder.seen.values():
        assert prediction.image_size == (16, 24)
        assert prediction.boxes.tolist() == [[3.0, 2.0, 9.0, 6.0]]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before(training: bool) -> None:
    class Watched(TinyModel):
        def forward(self, images: Any, targets: Any = None) -> Any:
            assert not self.training
            assert torch.is_inference_mode_enabled()
            return super().forward(images)

    model = Watched().train(training)
    evaluate(model, TinyLoader(workers=2), Recorder(), device=CPU)
    assert model.training is training


def test_modules_kept_in_eval_mode_stay_so() -> None:
    class Frozen(TinyModel):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.norm.eval()
            return self

    model = Frozen().train()
    evaluate(model, TinyLoader(), Recorder(), device=CPU)
    assert model.training
    assert not model.norm.training


def test_mode_is_restored_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, images: Any) -> Any:
            return []

    model = Broken().train()
    with pytest.raises(ValueError, match=r"2 images gave 0 predictions \(images \["):
        evaluate(model, TinyLoader(), Recorder(), device=CPU)
    assert model.training


def test_amp_and_progress() -> None:
    dtypes = set()

    class Probe(TinyModel):
        def _detection(self, scores: torch.Tensor, image: torch.Tensor) -> Instances:
            dtypes.add(scores.dtype)
            return super()._detection(scores, image)

    calls: list[tuple[int, int]] = []
    evaluate(
        Probe(),
        TinyLoader(),
        Recorder(),
        device=CPU,
        amp="bf16",
        on_batch=lambda done, total: calls.append((done, total)),
    )
    assert dtypes == {torch.bfloat16}
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_an_empty_batch_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    evaluate(TinyModel(), TinyLoader(empty=frozenset({(0, 1)})), recorder, device=CPU)
    assert len(recorder.seen) == 8
    assert "evaluation batch 2 is empty" in caplog.text
