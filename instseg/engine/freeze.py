"""Which parts of a model are frozen in which epoch: a pure function of the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from instseg.engine.layers import backbone_layers, backbone_name
from instseg.engine.patterns import check_patterns, is_in


@dataclass(frozen=True)
class FreezeRule:
    """Some modules that do not train at first, or never.

    Args:
        modules: patterns of `fnmatch` on the names of modules or parameters; a module stands for
            all that it holds.
        until_epoch: they are frozen in this many epochs from the first on; None for all.

    Raises:
        ValueError: ``until_epoch`` is less than 1.
    """

    modules: tuple[str, ...]
    until_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.until_epoch is not None and self.until_epoch < 1:
            raise ValueError(f"until_epoch must be at least 1, got {self.until_epoch}")

    def holds(self, epoch: int) -> bool:
        """Whether the modules are frozen in ``epoch`` (from 0)."""
        return self.until_epoch is None or epoch < self.until_epoch


class FreezeSchedule:
    """Freezes modules by epoch and thaws them again.

    A frozen module's parameters need no gradient, so an optimizer passes them by, decay and
    momentum included, and it is in evaluation mode: batch norm keeps its running figures, dropout
    does nothing. Parameters that needed no gradient when the schedule was made never get one.

    Args:
        model: as it was built; only names are kept of it.
        rules: what is frozen how long. None of them freezes anything again, so that an optimizer
            over what the last epoch trains has every parameter that any epoch trains.

    Raises:
        ValueError: a pattern matches no parameter (near names are listed), or nothing is left to
            train in the first epoch.
    """

    def __init__(self, model: nn.Module, rules: Sequence[FreezeRule]) -> None:
        check_patterns(model, (pattern for rule in rules for pattern in rule.modules))
        self.rules = tuple(rules)
        self._trainable = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
        if all(self._is_frozen(name, epoch=0) for name in self._trainable):
            raise ValueError("the first epoch would have nothing to train: all parts are frozen")

    def apply(self, model: nn.Module, epoch: int) -> bool:
        """Put the model in training mode as it is in ``epoch`` (from 0).

        Args:
            model: the one the schedule was made for, or one with its names (not a wrapper).
            epoch: the epoch about to be trained; the state does not depend on earlier calls.

        Returns:
            Whether other parameters need gradients now than before, so that what was built on
            them (a `DistributedDataParallel` wrapper) is out of date.
        """
        changed = False
        for name, parameter in model.named_parameters():
            wanted = name in self._trainable and not self._is_frozen(name, epoch)
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
                changed = True
        model.train()
        for name, module in model.named_modules():
            if name and self._is_frozen(name, epoch):
                module.eval()
        return changed

    def at_its_end(self, model: nn.Module) -> FreezeSchedule:
        """A schedule that has the last epochs' state from the start: what trains most."""
        return FreezeSchedule(model, [rule for rule in self.rules if rule.until_epoch is None])

    def describe(self) -> str:
        """A line for each rule."""
        return "\n".join(
            f"frozen in {_epochs(rule.until_epoch)}: {', '.join(rule.modules)}"
            for rule in self.rules
        )

    def _is_frozen(self, name: str, epoch: int) -> bool:
        return any(
            is_in(name, pattern)
            for rule in self.rules
            if rule.holds(epoch)
            for pattern in rule.modules
        )


def feature_extraction(model: nn.Module) -> list[FreezeRule]:
    """The backbone frozen in all epochs: only what reads its features trains.

    Raises:
        ValueError: the model has no backbone.
    """
    return [FreezeRule((backbone_name(model),))]


def fine_tuning(model: nn.Module, epochs: int) -> list[FreezeRule]:
    """Heads first, then the backbone's layers one after the other, the last one first.

    The layers thaw evenly over the first half of the training, so that of L layers the n-th from
    the end trains from epoch ``ceil(n * (epochs // 2) / L)`` (from 0) on, and all of them do in
    the second half.

    Source: gradual unfreezing, Howard and Ruder 2018, "Universal Language Model Fine-tuning for
    Text Classification", section 3.3, which thaws one layer an epoch.

    Args:
        model: with a backbone.
        epochs: of the whole training.

    Raises:
        ValueError: fewer than two epochs, or the model has no backbone.
    """
    if epochs < 2:
        raise ValueError(
            f"fine-tuning trains the heads before the backbone: it needs 2 epochs, got {epochs}"
        )
    layers = backbone_layers(model)[::-1]
    return [
        FreezeRule(tuple(names), until_epoch=-(-number * (epochs // 2) // len(layers)))
        for number, names in enumerate(layers, start=1)
    ]


def _epochs(count: int | None) -> str:
    if count is None:
        return "all epochs"
    return "epoch 1" if count == 1 else f"epochs 1 to {count}"
