"""Import of YOLOX's ONNX files: outputs equal to onnxruntime's, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.detection.yolox import yolox, yolox_nano, yolox_s
from instseg.models.foreign.yolox_onnx import load_yolox_onnx
from instseg.models.fuse import fold_batch_norm

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'instseg[onnx]'")

STEM = "backbone.stem.conv"


def folded_tensors(model: nn.Module) -> list[tuple[str, np.ndarray]]:
    """Weight and bias of each convolution in turn, the stem's as random ones of a focus layer."""
    tensors = []
    for name, conv in fold_batch_norm(model).named_modules():
        if isinstance(conv, nn.Conv2d):
            weight = torch.randn(len(conv.weight), 12, 3, 3) if name == STEM else conv.weight
            tensors.append((f"{name}.weight", weight.detach().numpy()))
            tensors.append((f"{name}.bias", conv.bias.detach().numpy()))
    return tensors


def write(path: Path, tensors: list[tuple[str, np.ndarray]], more: tuple[str, ...] = ()) -> Path:
    """A graph with a convolution for each two tensors; only what the import reads is there."""
    names = [name for name, _ in tensors]
    nodes = [
        onnx.helper.make_node("Conv", ["x", w, b], [f"{w}.out"], name=w)
        for w, b in zip(names[0::2], names[1::2], strict=True)
    ]
    nodes += [onnx.helper.make_node(op, ["x"], ["y"], name="odd") for op in more]
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in tensors]
    graph = onnx.helper.make_graph(nodes, "yolox", [], [], initializers)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def randomise(model: nn.Module) -> None:
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.2)
        norm.running_var.uniform_(0.5, 1.5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, nn.Module, list[tuple[str, np.ndarray]]]:
    torch.manual_seed(3)
    model = yolox("yolox_tiny", 5)
    randomise(model)
    tensors = folded_tensors(model)
    return write(tmp_path_factory.mktemp("onnx") / "t.onnx", tensors), model, tensors


@torch.no_grad()
def test_every_tensor_comes_back(tiny):
    path, _, tensors = tiny
    state, name = load_yolox_onnx(path)
    assert name == "yolox_tiny"
    loaded = yolox(name, 5)
    loaded.load_state_dict(state)
    again = dict(fold_batch_norm(loaded).named_parameters())
    for key, value in tensors:
        if key != f"{STEM}.weight":
            assert torch.allclose(again[key], torch.from_numpy(value), rtol=1e-6), key
    assert load_yolox_onnx(path, expected="yolox_tiny")[1] == "yolox_tiny"


@torch.no_grad()
def test_the_stem_sees_rgb_as_the_focus_layer_saw_bgr(tiny):
    """Blocks of 2x2 pixels: top left, bottom left, top right, bottom right, each BGR."""
    path, _, tensors = tiny
    weight = torch.from_numpy(dict(tensors)[f"{STEM}.weight"])
    rgb = torch.randn(1, 3, 10, 12)
    bgr = rgb.flip(1)
    blocks = [
        bgr[..., 0::2, 0::2],
        bgr[..., 1::2, 0::2],
        bgr[..., 0::2, 1::2],
        bgr[..., 1::2, 1::2],
    ]
    wanted = F.conv2d(torch.cat(blocks, dim=1), weight, padding=1)
    loaded = yolox("yolox_tiny", 5)
    loaded.load_state_dict(load_yolox_onnx(path)[0])
    assert torch.allclose(loaded.backbone.stem.conv(rgb), wanted, atol=1e-4)


def test_another_variant_is_named(tiny):
    path, _, _ = tiny
    with pytest.raises(ValueError, match=r"t\.onnx holds yolox_tiny, not yolox_s"):
        load_yolox_onnx(path, expected="yolox_s")
    with pytest.raises(ValueError, match=r"one of yolox_nano, .*, got 'yolox_xl'"):
        load_yolox_onnx(path, expected="yolox_xl")


class TestNoYOLOX:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load_yolox_onnx(path)
        assert str(path) in str(caught.value)

    def test_not_onnx(self, tmp_path):
        path = tmp_path / "text.onnx"
        path.write_text("hello world this is no protobuf")
        self.refused(path, "is not an ONNX file")

    def test_cut_short(self, tmp_path, tiny):
        path = tmp_path / "cut.onnx"
        path.write_bytes(tiny[0].read_bytes()[:100_000])
        self.refused(path, "is not an ONNX file")

    def test_no_convolutions(self, tmp_path):
        path = tmp_path / "empty.onnx"
        path.write_bytes(b"")
        self.refused(path, "it has 0 convolutions, the first of shape none")

    def test_another_network(self, tmp_path):
        tensors = folded_tensors(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)))
        self.refused(write(tmp_path / "n.onnx", tensors), r"has 2 convolutions.* \[8, 3, 3, 3\]")

    def test_another_width(self, tmp_path, tiny):
        """As many convolutions as YOLOX-Tiny, but one of another shape."""
        name, value = tiny[2][6]
        odd = [*tiny[2][:6], (name, value[:-1]), *tiny[2][7:]]
        self.refused(write(tmp_path / "w.onnx", odd), "no variant .* has the same")

    def test_batch_norm_that_is_not_folded(self, tmp_path, tiny):
        path = write(tmp_path / "bn.onnx", tiny[2], more=("BatchNormalization",))
        self.refused(path, "batch norm odd is not folded .* in evaluation mode")

    def test_a_convolution_without_bias(self, tmp_path, tiny):
        path = write(tmp_path / "b.onnx", tiny[2])
        model = onnx.load(path)
        del model.graph.node[4].input[2]
        onnx.save(model, path)
        self.refused(path, "convolution .* has no weight and bias in the file")

    def test_weights_in_another_file(self, tmp_path, tiny):
        path = write(tmp_path / "e.onnx", tiny[2])
        onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0)
        self.refused(path, "lie in another file")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
            load_yolox_onnx(tmp_path / "none.onnx")

    def test_without_the_library(self, monkeypatch, tiny):
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ImportError, match=r"pip install 'instseg\[onnx\]'"):
            load_yolox_onnx(tiny[0])


@pytest.fixture(scope="module")
def nano(yolox_onnx: Path) -> nn.Module:
    state, name = load_yolox_onnx(yolox_onnx)
    assert name == "yolox_nano"
    model = yolox_nano(80).eval()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def photographs(real_data: Path) -> list[Tensor]:
    """Eight photographs, RGB, resized so that the longer side is 416."""
    paths = sorted((real_data / "coco_tiny80" / "val2017").glob("*.jpg"))[:8]
    assert len(paths) == 8
    images = []
    for path in paths:
        picture = cv2.imread(str(path))[..., ::-1]
        scale = 416 / max(picture.shape[:2])
        size = (int(picture.shape[1] * scale), int(picture.shape[0] * scale))
        resized = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(resized.copy()).permute(2, 0, 1))
    return images


@pytest.mark.real_data
class TestPublishedNano:
    @torch.inference_mode()
    def test_raw_outputs_equal_onnxruntimes(self, yolox_onnx, nano, photographs):
        """Scores to 1e-4; offsets of boxes, which reach to about 4, to 1e-4 of the largest.

        Of the offsets 99.9% are equal to 1e-4 too. All cannot be: onnxruntime's own differ
        as much from those of the same network in float64 (benchmarks/yolox_outputs.py).
        """
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(yolox_onnx, providers=["CPUExecutionProvider"])
        for picture in photographs:
            padded = np.full((1, 3, 416, 416), 114, np.float32)
            padded[0, :, : picture.shape[1], : picture.shape[2]] = picture.flip(0).numpy()
            (wanted,) = session.run(None, {"images": padded})
            batch = nano.preprocess([picture])
            output = nano.head(nano.neck(nano.backbone(batch.tensor)))
            scores = [output.objectness[..., None].sigmoid(), output.classes.sigmoid()]
            got = torch.cat([output.boxes, *scores], dim=-1)
            assert got.shape == wanted.shape == (1, 3549, 85)
            assert wanted[..., 4].max() > 0.3
            apart = (got - torch.from_numpy(wanted)).abs()
            assert apart[..., 4:].max() < 1e-4
            assert apart.max() < 1e-4 * abs(wanted).max()
            assert (apart < 1e-4).float().mean() > 0.999

    @torch.inference_mode()
    def test_folded_again_it_is_the_same(self, nano, photographs):
        found, again = nano(photographs), fold_batch_norm(nano)(photographs)
        for a, b in zip(found, again, strict=True):
            assert len(a) > 0
            assert torch.equal(a.labels[:3], b.labels[:3])
            assert torch.allclose(a.boxes[:3], b.boxes[:3], atol=1e-2)

    def test_as_many_parameters(self, yolox_onnx, nano):
        """The file's weights and biases; here batch norm has a factor more for each channel."""
        stored = onnx.load(yolox_onnx).graph
        used = {i for node in stored.node if node.op_type == "Conv" for i in node.input[1:]}
        count = sum(int(np.prod(t.dims)) for t in stored.initializer if t.name in used)
        norms = [m for m in nano.modules() if isinstance(m, nn.BatchNorm2d)]
        assert sum(p.numel() for p in nano.parameters()) == count + sum(
            n.num_features for n in norms
        )

    def test_another_variant_is_named(self, yolox_onnx):
        with pytest.raises(ValueError, match="holds yolox_nano, not yolox_s"):
            load_yolox_onnx(yolox_onnx, expected="yolox_s")
        with pytest.raises(RuntimeError, match="size mismatch"):
            yolox_s(80).load_state_dict(load_yolox_onnx(yolox_onnx)[0], strict=False)
