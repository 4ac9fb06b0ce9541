"""YOLOX from the ONNX files of its authors (Apache-2.0), whose batch norm is folded away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instseg.models.detection.yolox import VARIANTS, yolox


def load_yolox_onnx(
    path: Path | str, *, expected: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a YOLOX graph.

    Convolutions are taken in the order of the graph, which is that of the modules here. The bias of
    a folded convolution becomes that of a batch norm which is otherwise an identity, so that the
    model is an ordinary trainable one. Before training with batch statistics, call
    `instseg.models.fuse.restore_batch_norm`. The stem's channels are turned from BGR to RGB.

    Args:
        path: of the ONNX file, as the authors' export writes it.
        expected: the variant that the file has to be of; None for any.

    Returns:
        A state dict for the variant with the file's number of classes, and the variant's name, one
        of `instseg.models.detection.yolox.VARIANTS`.

    Raises:
        ImportError: onnx is not installed (``pip install instseg[onnx]``).
        ValueError: the file is not ONNX, not of YOLOX, or not of the expected variant.
        FileNotFoundError: there is no such file.
    """
    if expected is not None and expected not in VARIANTS:
        raise ValueError(f"expected must be one of {', '.join(VARIANTS)}, got {expected!r}")
    convs = _read_convolutions(Path(path))
    name, model = _find_variant(convs, str(path))
    if expected not in (None, name):
        raise ValueError(f"{path} holds {name}, not {expected}: build {name}, or give its file")
    return _state_dict(model, convs), name


def _read_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each convolution, in the order of the graph."""
    onnx = _import_onnx()
    from google.protobuf.message import DecodeError  # comes with onnx

    content = path.read_bytes()
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    tensors = {t.name: t for t in graph.initializer}
    convs = []
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            raise ValueError(
                f"{path}: batch norm {node.name or node.output[0]} is not folded into its "
                "convolution: export the network in evaluation mode"
            )
        if node.op_type == "Conv":
            convs.append(_parameters(node, tensors, path))
    return convs


def _parameters(node: Any, tensors: dict[str, Any], path: Path) -> tuple[Tensor, Tensor]:
    name = node.name or node.output[0]
    if len(node.input) != 3 or any(i not in tensors for i in node.input[1:]):
        raise ValueError(f"{path}: convolution {name} has no weight and bias in the file")
    found = [tensors[i] for i in node.input[1:]]
    if any(t.external_data for t in found):
        raise ValueError(
            f"{path}: the weights of {name} lie in another file; save the graph with them inside"
        )
    weight, bias = (torch.tensor(_import_onnx().numpy_helper.to_array(t)) for t in found)
    return weight.float(), bias.float()


def _find_variant(convs: list[tuple[Tensor, Tensor]], source: str) -> tuple[str, nn.Module]:
    """The variant whose convolutions have these shapes, on the meta device."""
    shapes = [w.shape for w, _ in convs]
    for name in VARIANTS:
        model = _meta_model(name, 1)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        if len(layers) != len(convs):
            continue
        num_classes = len(convs[layers.index(_class_layer(model))][0])
        model = _meta_model(name, num_classes)
        if [_foreign_shape(n, m) for n, m in _named_convs(model)] == shapes:
            return name, model
    stem = list(shapes[0]) if shapes else "none"
    raise ValueError(
        f"{source} is no YOLOX of its authors' export: it has {len(convs)} convolutions, the first "
        f"of shape {stem}, and no variant ({', '.join(VARIANTS)}) has the same"
    )


def _state_dict(model: nn.Module, convs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    state = {}
    for (name, conv), (weight, bias) in zip(_named_convs(model), convs, strict=True):
        state[f"{name}.weight"] = _stem_weight(weight) if _is_stem(name) else weight
        if conv.bias is not None:
            state[f"{name}.bias"] = bias
            continue
        norm = name.removesuffix("conv") + "norm"
        layer = model.get_submodule(norm)
        assert isinstance(layer, nn.BatchNorm2d)
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        # The square root of variance plus epsilon, by which batch norm divides, is 1.
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - layer.eps)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state


def _stem_weight(weight: Tensor) -> Tensor:
    """The focus layer's 3x3 weight over 12 channels as a 6x6 one over RGB.

    The 12 channels are 4 x 3: the pixels of a 2x2 block down the columns (top left, bottom left,
    top right, bottom right), each as BGR.
    """
    blocks = weight.unflatten(1, (2, 2, 3)).flip(3)  # [out, column, row, RGB, 3, 3]
    return blocks.permute(0, 3, 4, 2, 5, 1).reshape(len(weight), 3, 6, 6)


def _foreign_shape(name: str, conv: nn.Conv2d) -> torch.Size:
    """The shape that the weight of a convolution has in the file."""
    return torch.Size([conv.out_channels, 12, 3, 3]) if _is_stem(name) else conv.weight.shape


def _is_stem(name: str) -> bool:
    return name == "backbone.stem.conv"


def _named_convs(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def _class_layer(model: nn.Module) -> nn.Conv2d:
    layer = model.get_submodule("head.convs.levels.0.classes")
    assert isinstance(layer, nn.Conv2d)
    return layer


def _meta_model(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):  # the shapes alone
        return yolox(name, num_classes)


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError("reading ONNX files needs onnx: pip install 'instseg[onnx]'") from error
    return onnx
