"""The layers of a model's backbone, from the image on, found by the structure of its modules."""

from __future__ import annotations

from itertools import chain

from torch import nn

from instseg.engine.patterns import is_in

_BACKBONES = ("backbone", "encoder")
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


def backbone_name(model: nn.Module) -> str:
    """The name of the outermost module called ``backbone`` or ``encoder``.

    Raises:
        ValueError: there is none.
    """
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] in _BACKBONES]
    if not names:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"the model has no part named {' or '.join(_BACKBONES)}; its parts are {parts}"
        )
    return min(names, key=lambda name: name.count("."))


def backbone_layers(model: nn.Module) -> list[list[str]]:
    """The names of the modules (and bare parameters) of each layer of the backbone, in order.

    Layers are the children of the backbone that have parameters: the stem and the stages of a
    ResNet. Where one child holds all, or a single one is a list (of blocks, as in EfficientNet or
    ViT), the layers are its children in turn. Convolutions that stand bare in a row are one layer
    up to the next pooling, as in VGG; a norm belongs to what comes before it.

    Raises:
        ValueError: as `backbone_name`, or the backbone has no parameters.
    """
    name = backbone_name(model)
    layers = _layers(name, model.get_submodule(name))
    if not layers:
        raise ValueError(f"{name} has no parameters")
    return layers


def backbone_blocks(model: nn.Module) -> list[str]:
    """The names of the backbone's blocks, modules that are each called as a whole, in order.

    Blocks are what lists of modules hold, if it has parts of its own: the bottlenecks of a
    ResNet's stages, a transformer's blocks. A backbone without any, as VGG, is cut into layers.

    Raises:
        ValueError: as `backbone_layers`.
    """
    name = backbone_name(model)
    layers = [part for layer in backbone_layers(model) for part in layer]
    modules = dict(model.named_modules())
    return _blocks(name, modules[name]) or [part for part in layers if part in modules]


def layer_of(name: str, layers: list[list[str]]) -> int | None:
    """The number of the layer that a parameter is in; None outside the backbone."""
    for number, parts in enumerate(layers):
        if any(is_in(name, part) for part in parts):
            return number
    return None


def _blocks(prefix: str, module: nn.Module) -> list[str]:
    """The innermost, since what is around them may be called in parts (timm's wrappers are)."""
    blocks: list[str] = []
    for short, child in module.named_children():
        name = f"{prefix}.{short}"
        if inner := _blocks(name, child):
            blocks += inner
        elif isinstance(module, _LISTS) and not (isinstance(child, _LISTS) or _is_bare(child)):
            blocks.append(name)
    return blocks


def _layers(prefix: str, module: nn.Module) -> list[list[str]]:
    children = list(module.named_children())
    trunk = _trunk([child for _, child in children if _has_parameters(child)])
    layers: list[list[str]] = []
    in_row = False
    for short, child in children:
        name = f"{prefix}.{short}"
        if not _has_parameters(child):
            in_row = in_row and not isinstance(child, _POOLS)
        elif child is trunk:
            layers += _layers(name, child)
            in_row = False
        elif layers and (_is_norm(child) or (in_row and _is_bare(child))):
            layers[-1].append(name)
        else:
            layers.append([name])
            in_row = _is_bare(child)
    if own := [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]:
        layers[:1] = [[*own, *chain.from_iterable(layers[:1])]]
    return layers


def _trunk(children: list[nn.Module]) -> nn.Module | None:
    """The one child to go into, if there is one."""
    candidates = children
    if len(children) > 1:
        candidates = [child for child in children if type(child) in _LISTS]
    return candidates[0] if len(candidates) == 1 and not _is_bare(candidates[0]) else None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_bare(module: nn.Module) -> bool:
    return not any(_has_parameters(child) for child in module.children())


def _is_norm(module: nn.Module) -> bool:
    return _is_bare(module) and all(parameter.ndim <= 1 for parameter in module.parameters())
