"""One update of the weights: forward, backward, clip, step, average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from instseg.engine.amp import Amp, autocast
from instseg.engine.average import make_average
from instseg.engine.buffers import BufferSnapshot
from instseg.engine.distributed import gather
from instseg.engine.gradient_exchange import GradientExchange
from instseg.engine.out_of_memory import OnOutOfMemory, backward_in_parts
from instseg.engine.protocols import Batch
from instseg.engine.rng import micro_batch_seed, seed_everything
from instseg.engine.sharded_exchange import ShardedExchange
from instseg.engine.sharding import Sharding, whole_tensor


@dataclass(frozen=True)
class Gradient:
    """What the backward passes over a step's batches gave, the same in every process.

    Args:
        losses: of each batch with images, by its place in the step: each loss's value, and their
            sum under ``loss``.
        means: the same over all batches, every image weighing the same.
        norm: 2-norm of the gradient before clipping.
    """

    losses: dict[int, dict[str, float]]
    means: dict[str, float]
    norm: float


class Updater:
    """Turns batches into updates of a model's weights (and of their average).

    Args:
        model: ``model(images, targets)`` returns a dict of scalar losses; on its final device.
        optimizer: over parameters of ``model``.
        seed: of what the model draws.
        amp: half type of the forward pass; fp16 scales the loss.
        clip_norm: limit on the gradient's 2-norm.
        ema_decay: decay of the average of parameters and buffers; None for no average.
        on_out_of_memory: what is done when a batch does not fit into a GPU's memory, see
            `backward_in_parts`.
        sharding: has sharded ``model`` among the processes; None where each has all of it.

    Raises:
        ValueError: a parameter of ``optimizer`` is not one of ``model``, or a sharded model is to
            repeat passes in one process alone.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        amp: Amp | None,
        clip_norm: float | None,
        ema_decay: float | None,
        on_out_of_memory: OnOutOfMemory = "stop",
        sharding: Sharding | None = None,
    ) -> None:
        _check_optimizer(model, optimizer)
        if sharding is not None and on_out_of_memory == "split":
            raise ValueError("a sharded model cannot repeat a pass in halves in one process alone")
        self.model = model
        self.optimizer = optimizer
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = make_average(model, ema_decay, sharding)
        self.amp = amp
        # A backward pass that may be repeated cannot be the one that adds up the gradients.
        self.exchange = (
            GradientExchange(model, overlap=on_out_of_memory == "stop")
            if sharding is None
            else ShardedExchange(model)
        )
        self._sharding = sharding
        self._seed = seed
        self._clip_norm = clip_norm
        self._on_out_of_memory = on_out_of_memory

    def averaged_model(self) -> nn.Module:
        """The model to evaluate and keep: the average if there is one. All processes call it."""
        return self.whole(self.model if self.ema is None else self.ema.module)

    def whole(self, model: nn.Module) -> nn.Module:
        """The model, or an unsharded copy of one that is sharded; all processes call it."""
        return model if self._sharding is None else self._sharding.whole(model)

    def compute_gradient(
        self, batches: Mapping[int, Batch], counts: Sequence[int], step: int
    ) -> Gradient:
        """The gradient of the mean loss over all images of a step.

        Losses are means over a batch's images, so a batch weighs its share of the step's images: k
        batches, wherever they are worked on, give the gradient of one batch with all their images.
        The host waits for the device once (the loss scaler of fp16 waits once more, in `apply`).

        Args:
            batches: those that this process works on, by their place in the step; none is empty.
            counts: images of each batch of the step, in all processes.
            step: updates made before.
        """
        self.model.zero_grad(set_to_none=True)
        exchange, total = self.exchange, sum(counts)
        work = [sum(n > 0 for n in counts[rank :: exchange.size]) for rank in range(exchange.size)]
        overlaps = exchange.overlaps(all_work=all(work))
        exchange.share_norms(together=len(set(work)) == 1)
        missing = exchange.missing_passes(batches, work)
        losses = {}
        for number, batch in batches.items():
            backward = partial(
                self._backward,
                exchange.module(adds_up=overlaps and number == max(batches)),
                counts[number] / total,
                self.seed_of(step, number),
            )
            losses[number] = backward_in_parts(
                self.model, batch, backward, policy=self._on_out_of_memory
            )
        if not overlaps:
            exchange.add_gradients()
        self._repeat_for_others(missing, step)
        exchange.average_buffers(moved=bool(batches), processes=sum(map(bool, work)))
        norm = self._clip()
        return self._read(losses, counts, norm)

    def seed_of(self, step: int, number: int) -> int:
        """The seed of what the model draws for the batch in place ``number`` of a step."""
        return micro_batch_seed(self._seed, step, number)

    def _backward(
        self, module: nn.Module, weight: float, seed: int, batch: Batch, share: float
    ) -> dict[str, Tensor]:
        """Add the gradient of ``share`` of a batch; returns its losses, on the device."""
        seed_everything(seed)
        with autocast(self.device, self.amp):
            parts = module(
                [image.to(self.device, non_blocking=True) for image in batch.images],
                [target.to(self.device) for target in batch.targets],
            )
        loss = _checked_sum(parts)
        self.scaler.scale(loss * (weight * share)).backward()
        return {"loss": loss.detach(), **{k: v.detach() for k, v in parts.items()}}

    def _repeat_for_others(self, batches: list[tuple[int, Batch]], step: int) -> None:
        """Make passes that add nothing but that other processes wait for."""
        for number, batch in batches:
            buffers = BufferSnapshot(self.model)
            self._backward(self.model, 0.0, self.seed_of(step, number), batch, 1.0)
            buffers.restore()

    def apply(self) -> None:
        """Take the step along the gradient, and move the average."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def discard(self, *, lower_scale: bool) -> None:
        """Leave the step out, and lower the loss scale of fp16 or not."""
        self.scaler.update(None if lower_scale else self.scaler.get_scale())

    def _clip(self) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = whole_tensor(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if self._clip_norm is not None:
            clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return norm

    def _read(
        self, losses: dict[int, dict[str, Tensor]], counts: Sequence[int], norm: Tensor
    ) -> Gradient:
        """Bring every figure to the host in one transfer, and to every process."""
        figures = [norm, *(value for parts in losses.values() for value in parts.values())]
        norm_value, *values = torch.stack([f.float() for f in figures]).tolist()
        rest = iter(values)
        own = {number: {name: next(rest) for name in parts} for number, parts in losses.items()}
        everyone = {number: parts for some in gather(own) for number, parts in some.items()}
        read = dict(sorted(everyone.items()))
        means: dict[str, float] = {}
        for number, parts in read.items():
            for name, value in parts.items():
                means[name] = means.get(name, 0.0) + counts[number] / sum(counts) * value
        return Gradient(read, means, norm_value)


def _checked_sum(losses: object) -> Tensor:
    """The sum of a model's losses.

    Raises:
        TypeError: the model did not return a dict of scalar tensors.
        ValueError: a loss is named ``loss``, which is the sum's name.
    """
    if not isinstance(losses, dict) or not losses:
        raise TypeError(
            f"a training model must return a dict of losses, got {type(losses).__name__}"
        )
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim != 0:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss '{name}' must be a scalar tensor, got {found}")
    if "loss" in losses:
        raise ValueError("a model's loss may not be named 'loss': that is the sum's name")
    return reduce(torch.add, losses.values())


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    known = {id(parameter) for parameter in model.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        foreign = sum(id(parameter) not in known for parameter in group["params"])
        if foreign:
            raise ValueError(f"{foreign} parameters of optimizer group {index} are not the model's")
