"""Batches that do not fit, on a CPU that says so."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from instseg.engine.out_of_memory import DeviceMemoryError, backward_in_parts, is_out_of_memory
from instseg.engine.protocols import Batch
from instseg.engine.rng import micro_batch_seed, seed_everything
from instseg.engine.update import Gradient, Updater

from .tiny import make_batch

PIXELS = 64
"""Of one image of the tests."""


class _Backward(torch.autograd.Function):
    """The identity, whose backward pass needs too much memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")


class Limited(nn.Module):
    """A mean over images; runs out of memory above a number of pixels, on the way ``when``.

    The gradient of ``late`` is there when the backward pass fails, that of ``early`` is not.
    """

    def __init__(self, images: int, when: str) -> None:
        super().__init__()
        self.limit = images * PIXELS
        self.when = when
        self.early = nn.Linear(3, 4)
        self.late = nn.Linear(4, 2)
        self.register_buffer("calls", torch.tensor(0.0))
        self.sizes: list[int] = []

    def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        self.calls += 1
        self.sizes.append(len(images))
        too_much = sum(image[0].numel() for image in images) > self.limit
        if too_much and self.when == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
        x = torch.stack([image.float().mean((1, 2)) / 255 for image in images])
        x = self.early(x).relu()
        if too_much:
            x = _Backward.apply(x)
        return {"fit": self.late(x).square().mean(), "size": x.abs().mean()}


def run_with(model: nn.Module, weight: float = 1.0) -> Any:
    def run(batch: Batch, share: float) -> dict[str, Tensor]:
        losses = model(batch.images, batch.targets)
        (sum(losses.values()) * weight * share).backward()
        return {name: value.detach() for name, value in losses.items()}

    return run


def make_model(images: int, when: str = "forward") -> Limited:
    torch.manual_seed(0)
    return Limited(images, when)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize(
    ("fits", "sizes"),
    [(5, [5]), (3, [5, 3, 2]), (2, [5, 3, 2, 1, 2]), (1, [5, 3, 2, 1, 1, 1, 2, 1, 1])],
)
def test_parts_have_the_gradient_of_the_whole(when: str, fits: int, sizes: list[int]) -> None:
    batch, earlier = make_batch([1, 2, 3, 4, 5]), make_batch([6, 7])
    whole = make_model(100)
    run_with(whole, 0.4)(earlier, 1.0)
    losses = run_with(whole, 0.6)(batch, 1.0)
    expected = gradients(whole)

    model = make_model(fits, when)
    run_with(unlimited(model), 0.4)(earlier, 1.0)
    model.sizes.clear()
    found = backward_in_parts(model, batch, run_with(model, 0.6), policy="split")
    assert model.sizes == sizes
    assert found.keys() == losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(found[name], value)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])
    parts_that_fit = sum(size <= fits for size in sizes)
    assert model.calls == 1 + parts_that_fit  # buffers do not know of failed attempts


def unlimited(model: Limited) -> nn.Module:
    """The model without its limit, for the micro-batch before."""

    class Unlimited(nn.Module):
        def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
            limit, model.limit = model.limit, 10**9
            try:
                return model(images, targets)
            finally:
                model.limit = limit

    return Unlimited()


def test_what_fits_is_added_bit_by_bit_as_without_the_policy() -> None:
    results = []
    for policy in ("stop", "split"):
        model = make_model(100)
        for ids in ([1, 2], [3, 4], [5]):
            backward_in_parts(model, make_batch(ids), run_with(model), policy=policy)  # type: ignore[arg-type]
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class Drawing(nn.Module):
    """The squared distance of a weight from each image's mean value and a number drawn for it."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.limit = images
        self.weight = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        self.calls += 1
        draws = draw(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        values = torch.stack([image.float().mean() / 255 for image in images])
        return {"near": (self.weight - values - draws).square().mean(), "far": -self.weight}


def draw(images: int) -> Tensor:
    """A number for each image, of every global generator."""
    return torch.rand(images) + torch.from_numpy(np.random.rand(images)).float() + random.random()


def update_with(model: nn.Module, policy: Any, batches: list[list[int]], amp: Any) -> Gradient:
    settings: dict[str, Any] = {"seed": 11, "clip_norm": None, "ema_decay": None}
    optimizer = SGD(model.parameters(), lr=0.1)
    updater = Updater(model, optimizer, amp=amp, on_out_of_memory=policy, **settings)
    made = dict(enumerate(map(make_batch, batches)))
    return updater.compute_gradient(made, [len(ids) for ids in batches], step=4)


@pytest.mark.parametrize(
    ("fits", "parts"),
    [
        (5, [[[1, 2, 3, 4, 5]], [[6, 7]], [[8, 9, 10]]]),
        (3, [[[1, 2, 3], [4, 5]], [[6, 7]], [[8, 9, 10]]]),
        (2, [[[1, 2], [3], [4, 5]], [[6, 7]], [[8, 9], [10]]]),
    ],
)
@pytest.mark.parametrize("amp", [None, "fp16"])
def test_a_step_of_which_batches_are_split(fits: int, parts: list[Any], amp: Any) -> None:
    """Each part of a batch draws from the batch's seed; images weigh the same in any part."""
    model = Drawing(fits)
    whole = [[i for ids in batch for i in ids] for batch in parts]
    found = update_with(model, "split", whole, amp)

    gradient = 0.0
    for number, batch in enumerate(parts):
        squares = []
        for ids in batch:
            seed_everything(micro_batch_seed(11, 4, number))
            values = torch.stack([make_batch([i]).images[0].float().mean() / 255 for i in ids])
            distances = 1.5 - values - draw(len(ids))
            squares += distances.square().tolist()
            gradient += float(2 * distances.sum()) / 10
        near = sum(squares) / len(squares)
        expected = {"loss": near - 1.5, "near": near, "far": -1.5}
        assert found.losses[number] == pytest.approx(expected, rel=1e-5)
    gradient -= 1  # of "far"
    assert model.weight.grad is not None
    assert float(model.weight.grad) == pytest.approx(gradient, rel=1e-5)
    assert found.norm == pytest.approx(abs(gradient), rel=1e-5)
    mean = sum(len(ids) * found.losses[i]["near"] for i, ids in enumerate(whole)) / 10
    assert found.means == pytest.approx({"loss": mean - 1.5, "near": mean, "far": -1.5}, rel=1e-5)
    assert model.calls == sum(map(len, parts))  # buffers do not know of failed attempts


def test_a_step_that_fits_is_the_same_with_the_policy() -> None:
    models = [Drawing(9), Drawing(9)]
    results = [
        update_with(model, policy, [[1, 2, 3], [4, 5]], None)
        for model, policy in zip(models, ("stop", "split"), strict=True)
    ]
    assert results[0] == results[1]
    assert torch.equal(*(model.weight.grad for model in models))  # type: ignore[arg-type]


def test_splitting_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(2)
    backward_in_parts(model, make_batch([1, 2, 3]), run_with(model), policy="split")
    assert "out of memory with 3 images: trying 2 and 1" in caplog.text


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_single_image_that_does_not_fit(when: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(0, when)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(DeviceMemoryError) as caught, caplog.at_level(logging.CRITICAL):
        backward_in_parts(model, make_batch([1, 2]), run_with(model), policy="split")
    message = str(caught.value)
    assert message.startswith(
        "out of memory in the forward or backward pass of 1 image: CUDA out of memory. Tried to "
        "allocate 2.00 GiB.\n"
    )
    assert "data.batch_size" not in message  # lowering it would not help
    assert "on_out_of_memory" not in message
    assert all(bool((g == 1).all()) for g in gradients(model).values())
    assert model.calls == 0


def test_the_report() -> None:
    model = make_model(1)
    batch = make_batch([1, 2])
    batch.images[1] = torch.zeros(3, 20, 10, dtype=torch.uint8)
    with pytest.raises(DeviceMemoryError) as caught:
        backward_in_parts(model, batch, run_with(model), policy="stop")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0].startswith("out of memory in the forward or backward pass of 2 images: CUDA")
    assert lines[1:4] == [
        "images (C x H x W): 3x8x8, 3x20x10",
        "padded to one batch: at least 2x3x20x10",
        "objects in each image: 1, 1",
    ]
    assert lines[4].startswith("largest parts of the model: early 0.0 MiB, late 0.0 MiB (all ")
    for word in ("data.batch_size", "transforms", "box_head.samples", "train.amp", "=split"):
        assert word in lines[5]
    assert len(lines) == 6
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize("policy", ["stop", "split"])
def test_other_errors_pass(policy: Any) -> None:
    model = make_model(5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def run(batch: Batch, share: float, /) -> dict[str, Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backward_in_parts(model, make_batch([1, 2]), run, policy=policy)
    assert all(bool((g == 1).all()) for g in gradients(model).values())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["stop", "split"])
def test_a_real_gpu(policy: Any) -> None:
    """Memory for two images and a half."""
    device = torch.device("cuda")

    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
            rows = torch.ones(len(images), 2**28, device=device)  # 1 GiB an image
            return {"fit": (rows * self.weight).mean()}

    model = Greedy().to(device)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(5 * 2**30 / total)
    try:
        if policy == "split":
            found = backward_in_parts(
                model, make_batch([1, 2, 3, 4]), run_with(model), policy=policy
            )
            assert found["fit"] == 1.0
            assert model.weight.grad == 1.0
        else:
            with pytest.raises(DeviceMemoryError, match=r"MiB in all, .* MiB reserved by torch"):
                backward_in_parts(model, make_batch([1, 2, 3, 4]), run_with(model), policy=policy)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
