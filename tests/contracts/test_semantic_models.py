"""What every semantic network must do. A new network is one more entry of `MODELS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from instseg.config.build_model import build_model
from instseg.config.schema_backbone import ResNetConfig, TimmConfig
from instseg.config.schema_semantic import (
    EncoderUNetConfig,
    FcnConfig,
    FpnSegmentationConfig,
    MarkerWatershedConfig,
    NetworkConfig,
    SegNetConfig,
    SemanticConfig,
    TernausNetConfig,
    UNetConfig,
    UNetFpnConfig,
)
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.ops import instance_rles, rle
from instseg.structures import IGNORE, Instances, SemanticMap

from .common import (
    check_compiles_in_one_graph,
    check_gradients,
    check_outputs_repeat,
    check_state_dict_round_trip,
    check_training_repeats,
    class_layers,
    loss_history,
)

NUM_CLASSES = 3
SIZES = [(64, 64), (33, 97), (31, 20), (1, 5)]

RESNET = ResNetConfig(name="resnet", depth=18, norm="live", freeze_at=0)
LITE = TimmConfig(name="timm", model="tf_efficientnet_lite0", norm="live")
UNET = UNetConfig(name="unet", width=4, depth=2)
WATERSHED = MarkerWatershedConfig(
    name="marker_watershed", threshold=0.3, marker_threshold=0.01, min_area=2
)

MODELS: dict[str, Callable[[int], SemanticSegmenter]] = {
    "unet_valid": lambda n: build(n, UNetConfig(name="unet", width=4, depth=2, padding="valid")),
    "unet_attention": lambda n: build(
        n, UNetConfig(name="unet", width=4, depth=2, attention=True, norm="batch", dropout=0.5)
    ),
    "encoder_unet_resnet18": lambda n: build(
        n,
        EncoderUNetConfig(
            name="encoder_unet", backbone=RESNET, decoder_channels=[16, 8, 8, 4, 4], attention=True
        ),
    ),
    "encoder_unet_lite0": lambda n: build(
        n,
        EncoderUNetConfig(name="encoder_unet", backbone=LITE, decoder_channels=[16, 8, 8, 4, 4]),
    ),
    "ternausnet": lambda n: build(n, TernausNetConfig(name="ternausnet", width=4)),
    "fcn_32s": lambda n: build(n, FcnConfig(name="fcn", stride=32, width=4, hidden=16)),
    "fcn_16s": lambda n: build(
        n, FcnConfig(name="fcn", stride=16, width=4, hidden=16, batch_norm=True)
    ),
    "fcn_8s": lambda n: build(
        n, FcnConfig(name="fcn", stride=8, width=4, hidden=16, learn_upsampling=True)
    ),
    "segnet": lambda n: build(n, SegNetConfig(name="segnet", width=4)),
    "fpn": lambda n: build(
        n,
        FpnSegmentationConfig(
            name="fpn", backbone=RESNET, pyramid_channels=16, segmentation_channels=32
        ),
    ),
    "unet_fpn": lambda n: build(
        n,
        UNetFpnConfig(
            name="unet_fpn", width=4, depth=2, pyramid_channels=8, segmentation_channels=8
        ),
    ),
    "without_background": lambda n: build(n, UNET, background=False),
    "multilabel": lambda n: build(
        n, UNET, classes="multilabel", loss={"bce": 1, "dice": 1}, threshold=0.25
    ),
    "border_watershed": lambda n: build(
        1, UNET, classes="border", class_weights=[1, 1, 3], instances=WATERSHED
    ),
    "gray_of_16_bits": lambda n: build(n, UNET, image_channels=1, image_bits=16),
    "five_channels": lambda n: build(
        n, UNetConfig(name="unet", width=4, depth=2, padding="valid"), image_channels=5
    ),
}
FOLLOWING = [name for name in MODELS if name not in ("border_watershed", "without_background")]
"""Those whose outputs follow the classes."""

NETWORKS = list(MODELS)[: list(MODELS).index("without_background")]
"""Each network once: what comes after is the first two again."""


def build(num_classes: int, network: NetworkConfig, **settings: object) -> SemanticSegmenter:
    torch.manual_seed(0)
    config = SemanticConfig.model_validate({"name": "semantic", "network": network, **settings})
    model = build_model(config, num_classes=num_classes, load_backbone=False)
    assert isinstance(model, SemanticSegmenter)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> SemanticSegmenter:
    return MODELS[request.param](NUM_CLASSES)


def image(model: SemanticSegmenter, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (model.network.in_channels, height, width)
    if model.network.in_channels == 1:
        wide = torch.randint(0, 65536, shape, generator=generator, dtype=torch.int32)
        return wide.to(torch.uint16)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def square(model: SemanticSegmenter, size: tuple[int, int]) -> SemanticMap:
    """Class 1 in a corner, ignored pixels beside it."""
    maps = torch.zeros(model.network.num_outputs, *size, dtype=torch.uint8)
    maps[1, : size[0] // 2, : size[1] // 2] = 1
    maps[:, : size[0] // 2, -1] = IGNORE
    return SemanticMap(maps if model.multi_label else maps[1])


def uniform(model: SemanticSegmenter, size: tuple[int, int], value: int) -> SemanticMap:
    shape = (model.network.num_outputs, *size) if model.multi_label else size
    return SemanticMap(torch.full(shape, value, dtype=torch.uint8))


def live(model: SemanticSegmenter) -> None:
    """Start zero scores (FCN's) anywhere, and put batch norm's figures to some use."""
    torch.manual_seed(5)
    for name, parameter in model.network.named_parameters():
        if not parameter.any() and any(fnmatchcase(name, p) for p in model.network.class_layers):
            nn.init.normal_(parameter, std=0.1)


def test_losses_are_finite_scalars_with_gradients(model):
    sizes = [(64, 96), (75, 50)]
    live(model)
    losses = model.train()([image(model, *s) for s in sizes], [square(model, s) for s in sizes])
    assert all(name.startswith("loss_") and loss > 0 for name, loss in losses.items())
    check_gradients(model, losses)
    assert all(p.grad.any() for p in model.network.parameters() if p.ndim == 4)


def test_training_lowers_the_loss(model):
    picture, target = [image(model, 64, 64)], [square(model, (64, 64))]
    history = loss_history(model, picture, target, lr=0.1, steps=10)
    assert min(history[5:]) < 0.95 * history[0]


def test_background_alone_trains(model):
    losses = model.train()([image(model, 64, 64)], [uniform(model, (64, 64), 0)])
    check_gradients(model, losses)


def test_pixels_without_label_teach_nothing(model):
    losses = model.train()([image(model, 64, 64)], [uniform(model, (64, 64), IGNORE)])
    assert all(loss == 0 for loss in losses.values())
    check_gradients(model, losses)
    assert not any(p.grad.any() for p in model.parameters())


def test_weights_of_pixels_count(model):
    """Pixels of weight 0 are as good as ignored ones; a weight for all alike changes nothing."""
    model.eval()
    live(model)
    size = (40, 48)
    pictures = [image(model, *size), image(model, 33, 20, seed=1)]
    labels = [square(model, size).labels, square(model, (33, 20)).labels]
    halves, without = torch.full(size, 0.5), labels[0].clone()
    halves[:, :24] = 0
    without[..., :24] = IGNORE

    def losses(first: SemanticMap) -> dict[str, Tensor]:
        return model(pictures, [first, SemanticMap(labels[1], weights=torch.full((33, 20), 0.5))])

    weighted = losses(SemanticMap(labels[0], weights=halves))
    ignored = losses(SemanticMap(without, weights=torch.full(size, 0.5)))
    for name, loss in weighted.items():
        assert loss.item() == pytest.approx(ignored[name].item(), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_predictions_keep_the_contract(model, size):
    live(model)
    (found,) = model.eval()([image(model, *size)])
    assert found.image_size == size
    if model.instances is not None:
        check_objects(found, size)
        return
    outputs = model.network.num_outputs
    assert isinstance(found, SemanticMap)
    assert found.threshold == model.threshold
    assert found.scores.shape == (outputs, *size)
    assert found.scores.dtype == torch.float32
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1
    assert found.labels.dtype == torch.uint8
    if model.multi_label:
        assert torch.equal(found.labels, (found.scores >= model.threshold).to(torch.uint8))
    else:
        assert torch.allclose(found.scores.sum(dim=0), torch.ones(size), atol=1e-5)
        assert torch.equal(found.labels.long(), found.scores.argmax(dim=0))


def check_objects(found: Instances, size: tuple[int, int]) -> None:
    n = len(found)
    assert n > 0 or size[0] == 1
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.labels.tolist() == [0] * n
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert all(0 <= score <= 1 for score in found.scores.tolist())
    codes = instance_rles(found)
    assert all(tuple(code["size"]) == size for code in codes)
    assert all(rle.area(code) >= WATERSHED.min_area for code in codes)
    assert sum(map(rle.area, codes)) <= size[0] * size[1]


@torch.inference_mode()
def test_a_batch_of_two_sizes_gives_each_image_its_own(model):
    live(model)
    small, large = image(model, 40, 52), image(model, 80, 96, seed=1)
    both = model.eval()([small, large])
    assert [f.image_size for f in both] == [(40, 52), (80, 96)]
    # The larger one lies alone as in the batch. So does the smaller, whose mirror image reaches
    # further in the batch, where no padding is seen.
    pairs = [(both[1], large)] + [(both[0], small)] * bool(model.network.border)
    for found, picture in pairs:
        (alone,) = model([picture])
        close(alone, found)


def close(a: SemanticMap | Instances, b: SemanticMap | Instances) -> None:
    if isinstance(a, Instances):
        assert torch.allclose(a.boxes, b.boxes)
    assert a.scores.shape == b.scores.shape
    assert torch.allclose(a.scores, b.scores, atol=1e-5)


def test_bfloat16_autocast(model):
    live(model)
    size = (64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([image(model, *size)], [square(model, size)])
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        with torch.inference_mode():
            (found,) = model.eval()([image(model, *size)])
    assert found.scores.dtype == torch.float32
    if isinstance(found, SemanticMap) and not model.multi_label:
        assert torch.allclose(found.scores.sum(dim=0), torch.ones(size), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "dtype", "sizes", "message"),
    [
        (0, torch.uint8, [], "at least one image"),
        (1, torch.uint8, [(8, 8)], r"images must be \[{}, H, W\], got \[{}, 8, 8\]"),
        (0, torch.int32, [(8, 8)], "uint8, uint16 or floating, got torch.int32"),
    ],
)
def test_bad_images_are_named(model, channels, dtype, sizes, message):
    own = model.network.in_channels
    images = [torch.zeros(own + channels, *size, dtype=dtype) for size in sizes]
    with pytest.raises(ValueError, match=message.format(own, own + channels)):
        model(images)


def test_bad_targets_are_named(model):
    size, outputs = (64, 64), model.network.num_outputs
    picture, fine = image(model, *size), square(model, size)
    other = SemanticMap(fine.labels[0] if model.multi_label else fine.labels[None])
    wanted = rf"\[{outputs}, H, W\]" if model.multi_label else r"\[H, W\]"
    unknown = 2 if model.multi_label else outputs
    cases: list[tuple[Sequence[object], str]] = [
        ([], "1 images but 0 targets"),
        ([square(model, (64, 60))], r"image 0 is \(64, 64\).*for \(64, 60\)"),
        ([Instances.empty(size)], "target 0 is Instances: a semantic network learns from Semantic"),
        ([other], f"labels of target 0 must be {wanted} for this network"),
        ([uniform(model, size, unknown)], rf"target holds \[{unknown}\], valid are 0 to"),
    ]
    for targets, message in cases:
        with pytest.raises(ValueError, match=message):
            model([picture], targets)


def test_state_dict_round_trip(model, tmp_path):
    check_state_dict_round_trip(model, tmp_path)


def test_uint16_is_the_same_picture(model):
    shape = (model.network.in_channels, 40, 32)
    picture = torch.randint(0, 256, shape, dtype=torch.uint8)
    wide = (picture.to(torch.int32) * 257).to(torch.uint16)
    with torch.inference_mode():
        (a,), (b,) = model.eval()([picture]), model([wide])
    close(a, b)


@torch.inference_mode()
def test_outputs_repeat_to_the_bit(model):
    live(model)
    check_outputs_repeat(model, [image(model, 64, 96), image(model, 70, 50, seed=1)])


def test_training_repeats_to_the_bit(model):
    check_training_repeats(model, [image(model, 64, 64)], [square(model, (64, 64))])


@pytest.mark.parametrize("name", FOLLOWING)
def test_class_layers_are_those_whose_shapes_follow_the_classes(name):
    differing, named = class_layers(MODELS[name])
    assert differing
    assert named == differing


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_what_the_network_says(name):
    """`valid_size`, `output_size` and `border`, at the sides around a few strides."""
    network = MODELS[name](2).network.eval()
    for size in (1, 31, 32, 33):
        height, width = network.valid_size(size), network.valid_size(size + 40)
        assert height >= size
        assert network.valid_size(height) == height
        with torch.inference_mode():
            logits = network(torch.zeros(1, network.in_channels, height, width))
        sides = (network.output_size(height), network.output_size(width))
        assert logits.shape == (1, network.num_outputs, *sides)
        assert sides == (height - 2 * network.border, width - 2 * network.border)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_networks_compile_in_one_graph(name):
    model = MODELS[name](2)
    live(model)
    check_compiles_in_one_graph(model, [image(model, 64, 96)])


@pytest.mark.parametrize("name", ["unet_valid", "unet_attention", "fcn_8s", "segnet", "unet_fpn"])
@torch.inference_mode()
def test_networks_export(name):
    model = MODELS[name](2).eval()
    live(model)
    network, side = model.network, model.network.valid_size(64)
    x = torch.rand(1, network.in_channels, side, side)
    exported = torch.export.export(network, (x,)).module()
    assert torch.allclose(exported(x), network(x), atol=1e-5)
