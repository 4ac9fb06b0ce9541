"""The tables that `instseg train --dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from instseg.engine.protocols import Batch, PerImage, ScheduleFn
from instseg.structures import Instances, SemanticMap


def size(number: int) -> str:
    """Bytes for a person."""
    return f"{number / 2**20:,.1f} MiB" if number < 2**30 else f"{number / 2**30:,.2f} GiB"


def quantities(title: str, values: Mapping[str, str]) -> Table:
    """Names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(name, value)
    return table


def parameter_table(model: nn.Module) -> Table:
    """Tensors and values of each part of a model; a tensor that two parts share is the first's."""
    table = Table(title="parameters", title_justify="left")
    for name in ("part", "tensors", "values", "trained", "frozen", "size"):
        table.add_column(name, justify="left" if name == "part" else "right")
    seen: set[nn.Parameter] = set()
    for name, part in _parts(model):
        own = [p for p in part.parameters() if p not in seen]
        seen.update(own)
        if own:
            _add_parameters(table, name, own)
    rest = [p for p in model.parameters() if p not in seen]
    if rest:
        _add_parameters(table, "others", rest)
    table.add_section()
    _add_parameters(table, "whole", list(model.parameters()))
    return table


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children; where one alone has parameters, its children."""
    prefix = ""
    while True:
        children = [(n, m) for n, m in model.named_children() if any(True for _ in m.parameters())]
        if len(children) != 1 or not any(True for _ in children[0][1].children()):
            break
        prefix, model = f"{prefix}{children[0][0]}.", children[0][1]
    for name, child in children:
        yield prefix + name, child


def _add_parameters(table: Table, name: str, parameters: Sequence[nn.Parameter]) -> None:
    values = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    table.add_row(
        name,
        f"{len(parameters)}",
        f"{values:,}",
        f"{trained:,}",
        f"{values - trained:,}",
        size(sum(p.numel() * p.element_size() for p in parameters)),
    )


def rate_table(
    optimizer: Optimizer, schedule: ScheduleFn, warmup_steps: int, total_steps: int
) -> Table:
    """The learning rates of the first step, the last of the warm-up, and the last of all."""
    base = [group["lr"] for group in optimizer.param_groups]
    steps = {"first step": 1, "last step of the warm-up": warmup_steps, "last step": total_steps}
    rows = {}
    for name, number in steps.items():
        if number > 0:
            rates = sorted({f"{rate * schedule(number - 1):.3g}" for rate in base}, key=float)
            rows[f"{name}, {number}"] = " to ".join(dict.fromkeys((rates[0], rates[-1])))
    return quantities("learning rate", rows)


def batch_table(rows: Sequence[tuple[str, str, str]]) -> Table:
    """See `batch_rows`."""
    table = Table(title=f"first batch: {len(rows)} images", title_justify="left")
    for name in ("image", "height x width", "target"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    return table


def batch_rows(batch: Batch) -> list[tuple[str, str, str]]:
    """Name, size after the transforms, and what is to be learnt of each image."""
    return [
        (Path(path).name, f"{image.shape[-2]} x {image.shape[-1]}", _target(target))
        for path, image, target in zip(batch.paths, batch.images, batch.targets, strict=True)
    ]


def _target(target: PerImage) -> str:
    if isinstance(target, Instances):
        crowds = int(target.crowd.sum())
        regions = f", {crowds} crowd regions" if crowds else ""
        return f"{len(target) - crowds} objects{regions}"
    if isinstance(target, SemanticMap):
        present = ", ".join(str(value) for value in target.labels.unique().tolist())
        return f"labels {present}" + (" in overlapping maps" if target.is_multi_label else "")
    return f"picture of {target.image_size[0]} x {target.image_size[1]}"
