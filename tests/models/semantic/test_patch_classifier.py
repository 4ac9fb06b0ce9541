"""The patch classifier, and that its FCN says the same of every pixel."""

import numpy as np
import pytest
import torch
from torch import Tensor

from instseg.models.preprocess import Preprocess
from instseg.models.semantic.patch_classifier import PatchClassifier, PatchFCN, patch_fcn
from instseg.models.semantic.segmenter import SemanticSegmenter


def small(**settings) -> PatchClassifier:
    """13 -> 10 -> 5 -> 4 -> 2 pixels."""
    settings = {"window": 13, "kernels": (4, 2), "maps": 5, "hidden": 6} | settings
    return PatchClassifier(2, 3, **settings)


def one_by_one(classifier: PatchClassifier, x: Tensor) -> Tensor:
    side = classifier.window
    rows, columns = x.shape[2] - side + 1, x.shape[3] - side + 1
    return torch.stack(
        [
            torch.stack(
                [classifier(x[:, :, i : i + side, j : j + side]) for j in range(columns)], 2
            )
            for i in range(rows)
        ],
        2,
    )


def test_n4_has_the_parameters_of_the_papers_table():
    expected = 4 * 4 * 48 + 48 + 5 * 5 * 48 * 48 + 48 + 2 * (4 * 4 * 48 * 48 + 48)
    expected += 3 * 3 * 48 * 200 + 200 + 200 * 2 + 2
    assert expected == 219_290
    classifier = PatchClassifier()
    assert sum(p.numel() for p in classifier.parameters()) == expected
    assert sum(p.numel() for p in PatchFCN(classifier).parameters()) == expected
    sides = []
    for layer in classifier.layers[:-3]:
        layer.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    assert classifier(torch.zeros(1, 1, 95, 95)).shape == (1, 2)
    assert sides[0::3][:4] == [92, 42, 18, 6]
    assert sides[2::3][:4] == [46, 21, 9, 3]


@torch.no_grad()
def test_the_fcn_of_n4_agrees_with_it():
    classifier = PatchClassifier().eval()
    x = torch.randn(1, 1, 97, 99)
    naive = classifier.predict_pixels(x)
    assert naive.shape == (1, 2, 3, 5)
    torch.testing.assert_close(PatchFCN(classifier).eval()(x), naive, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"window": 65, "kernels": (4, 4, 5, 4)}, {"window": 9, "kernels": ()}],
    ids=["two", "65", "dense"],
)
def test_the_fcn_agrees_at_every_pixel(shape, activation):
    classifier = small(**shape, activation=activation).double()
    side = classifier.window
    x = torch.randn(2, 2, side + 8, side + 5, dtype=torch.float64)
    expected = one_by_one(classifier, x)
    assert expected.shape == (2, 3, 9, 6)
    assert expected.std() > 1e-3
    torch.testing.assert_close(classifier.predict_pixels(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(PatchFCN(classifier).double()(x), expected, rtol=0, atol=1e-12)


def test_training_the_fcn_is_training_on_all_windows():
    classifier = small().double()
    network = PatchFCN(classifier).double()
    x = torch.randn(1, 2, 17, 16, dtype=torch.float64)
    weight = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    (classifier.predict_pixels(x) * weight).sum().backward()
    (network(x) * weight).sum().backward()
    for own, other in zip(network.parameters(), classifier.parameters(), strict=True):
        torch.testing.assert_close(own.grad.flatten(), other.grad.flatten(), rtol=0, atol=1e-10)
        assert own.grad.abs().sum() > 0


@torch.inference_mode()
def test_a_segmenter_labels_every_pixel_of_an_image():
    classifier = small()
    network = PatchFCN(classifier)
    segmenter = SemanticSegmenter(
        Preprocess((0.0, 0.0), (1.0, 1.0), 1), network, loss=lambda *_: {}
    )
    image = torch.rand(2, 15, 20)
    padded = np.pad(image.numpy(), ((0, 0), (6, 6), (6, 6)), mode="reflect")
    logits, sizes = segmenter.eval().logits([image])
    assert sizes == [(15, 20)]
    expected = classifier.predict_pixels(torch.from_numpy(padded)[None])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_sizes_border_and_class_layers():
    network = patch_fcn(4, in_channels=2, window=13, kernels=(4, 2), maps=5, hidden=6)
    assert network.border == 6
    assert [network.valid_size(n) for n in (1, 13, 14)] == [13, 13, 14]
    assert network(torch.zeros(1, 2, 13, 30)).shape == (1, 4, 1, network.output_size(30))
    shapes = [
        {k: v.shape for k, v in patch_fcn(n, window=13, kernels=(4, 2)).state_dict().items()}
        for n in (2, 5)
    ]
    differ = {k for k in shapes[0] if shapes[0][k] != shapes[1][k]}
    assert differ == {network.class_layers[0].replace("*", kind) for kind in ("weight", "bias")}


def test_the_fcn_has_weights_of_its_own():
    classifier = small()
    network = PatchFCN(classifier)
    torch.nn.init.zeros_(classifier.layers[0].weight)
    assert network.layers[0].weight.abs().sum() > 0


def test_compiles_in_one_graph():
    network = PatchFCN(small())
    x = torch.randn(1, 2, 16, 20)
    with torch.inference_mode():
        assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(x), network(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 12}, "window must be odd, to have a centre, got 12"),
        ({"kernels": (3, 2)}, r"kernels \(3, 2\) leave a map of side 11 after convolution 0"),
        ({"kernels": (4, 5)}, r"leave a map of side 1 after convolution 1 .* change kernel 1"),
        ({"activation": "gelu"}, r"activation must be one of \['relu', 'tanh'\], got gelu"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_windows_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"windows must be \[N, 2, 13, 13\], got \[1, 2, 13, 14\]"):
        small()(torch.zeros(1, 2, 13, 14))
