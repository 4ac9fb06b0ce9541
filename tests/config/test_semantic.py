"""Semantic networks of the ``model`` section: each setting reaches its part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from instseg.config.build_model import build_model
from instseg.config.loader import ConfigError
from instseg.config.schema import Config
from instseg.config.schema_semantic import SemanticConfig
from instseg.engine.weights import save_weights
from instseg.models.backbones import vgg
from instseg.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from instseg.models.semantic.decoders import AttentionGate
from instseg.models.semantic.fcn import FCN
from instseg.models.semantic.instances import (
    ConnectedComponents,
    DistanceWatershed,
    MarkerWatershed,
)
from instseg.models.semantic.network import EncoderDecoder
from instseg.models.semantic.pix2pix import Pix2Pix
from instseg.models.semantic.segmenter import SemanticSegmenter
from instseg.models.semantic.segnet import SegNet
from instseg.models.semantic.unet import UNet

UNET = {"name": "unet", "width": 2, "depth": 1}
RESNET = {"name": "resnet", "depth": 18, "norm": "live", "freeze_at": 0}
VGG = {"name": "vgg", "depth": 11, "width": 4}
LITE = {"name": "timm", "model": "test_resnet", "norm": "live"}


def built(number: int = 2, /, load_backbone: bool = False, **model: Any) -> SemanticSegmenter:
    config = SemanticConfig.model_validate({"name": "semantic", "network": UNET, **model})
    made = build_model(config, num_classes=number, load_backbone=load_backbone)
    assert isinstance(made, SemanticSegmenter)
    return made


def network(classes: int = 2, channels: int = 3, **settings: Any) -> Any:
    return built(classes, network=settings, image_channels=channels).network


def norms(module: nn.Module, kind: type[nn.Module] = nn.BatchNorm2d) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return norms(module, kind)


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (UNET, UNet),
        ({"name": "encoder_unet", "backbone": RESNET}, EncoderDecoder),
        ({"name": "encoder_unet", "backbone": LITE}, EncoderDecoder),
        ({"name": "encoder_unet", "backbone": VGG}, EncoderDecoder),
        ({"name": "ternausnet", "width": 4}, EncoderDecoder),
        ({"name": "fcn", "width": 4, "hidden": 8}, FCN),
        ({"name": "segnet", "width": 4}, SegNet),
        ({"name": "fpn", "backbone": RESNET, "segmentation_channels": 32}, EncoderDecoder),
        ({"name": "fpn", "backbone": VGG, "segmentation_channels": 32}, EncoderDecoder),
        ({"name": "unet_fpn", "width": 4, "depth": 2}, EncoderDecoder),
    ],
    ids=lambda v: v["name"] + v.get("backbone", {}).get("name", "") if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_the_channels_of_the_images(
    settings: dict[str, Any], kind: type[nn.Module], channels: int
) -> None:
    net = network(classes=4, channels=channels, **settings).eval()
    assert isinstance(net, kind)
    side = net.valid_size(32)
    with torch.inference_mode():
        logits = net(torch.zeros(1, channels, side, side))
    assert logits.shape[:2] == (1, 5)


def test_settings_of_unet() -> None:
    net = network(
        name="unet", width=3, depth=2, norm="batch", dropout=0.25, up="bilinear", attention=True
    )
    assert net.encoder.channels == [3, 6, 12]
    assert net.padded
    assert norms(net) == 2 * 5
    assert count(net, nn.ConvTranspose2d) == 0
    assert count(net, AttentionGate) == 2
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.25}
    plain = network(name="unet", width=3, depth=2)
    assert norms(plain) == count(plain, AttentionGate) == 0
    assert count(plain, nn.ConvTranspose2d) == 2
    assert network(name="unet", width=2, depth=4, padding="valid").border == 92  # the paper's
    assert norms(network(name="unet", width=32, depth=1, norm="group"), nn.GroupNorm) > 0


def test_settings_of_unet_on_an_encoder() -> None:
    channels = [20, 16, 12, 8, 4]
    net = network(
        name="encoder_unet", backbone=RESNET, decoder_channels=channels, attention=True, norm=None
    )
    assert net.encoder.strides == [2, 4, 8, 16, 32]
    assert net.head.in_channels == 4
    assert norms(net.decoder) == 0
    assert count(net, AttentionGate) == 4
    again = network(name="encoder_unet", backbone=RESNET, decoder_channels=channels)
    assert norms(again.decoder) > 0
    assert count(again, AttentionGate) == 0


def test_settings_of_fcn() -> None:
    net = network(
        name="fcn", stride=16, width=4, hidden=12, batch_norm=True, dropout=0.1,
        learn_upsampling=True,
    )  # fmt: skip
    assert net.fc7.out_channels == 12
    assert net.dropout.p == 0.1
    assert norms(net.encoder) == 13
    assert len(net.skip_scores) == 1
    assert net.final.weight.requires_grad
    plain = network(name="fcn", stride=32, width=4, hidden=12)
    assert norms(plain) == len(plain.skip_scores) == 0
    assert not list(plain.final.parameters())


def test_settings_of_the_others() -> None:
    net = network(name="ternausnet", width=4, freeze_at=1)
    assert net.head.in_channels == 2
    assert not next(net.encoder.parameters()).requires_grad
    assert network(name="segnet", width=6).head.in_channels == 6
    fpn = network(
        name="fpn", backbone=RESNET, pyramid_channels=24, segmentation_channels=32, norm="batch"
    )
    assert fpn.encoder.strides == [4, 8, 16, 32]
    assert fpn.head[0].in_channels == 32
    assert norms(fpn.decoder) > 0
    assert norms(fpn.decoder, nn.GroupNorm) == 0
    small = network(
        name="unet_fpn", width=5, depth=2, norm=None, pyramid_channels=6, segmentation_channels=7
    )
    assert small.encoder.channels == [5, 10, 20]
    assert small.head[0].in_channels == 7
    assert norms(small) == 0


def test_settings_of_pix2pix() -> None:
    config = {"name": "pix2pix", "width": 3, "depth": 4, "l1_weight": 7.0}
    model = build_model(load_model(config), num_classes=0)
    assert isinstance(model, Pix2Pix)
    assert model.generator.depth == 4
    assert model.generator.down[0].out_channels == model.discriminator[0].out_channels == 3
    assert model.l1_weight == 7


def load_model(section: dict[str, Any]) -> Any:
    """The ``model`` section of a whole configuration."""
    source = {"format": "image_pairs", "folder": "x"}
    return Config.model_validate(
        {
            "model": section,
            "data": {"train": source, "val": source},
            "train": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1}},
        }
    ).model


def test_an_encoders_weights_that_do_not_fit_name_their_key(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"conv.weight": torch.zeros(2)}, {})
    for backbone in (RESNET, LITE):
        weights = {**backbone, "weights": str(tmp_path / "w.safetensors")}
        with pytest.raises(ConfigError, match=r"^model\.network\.backbone\.weights: .*w\.safet"):
            network_with_weights(backbone=weights)


def network_with_weights(**settings: Any) -> Any:
    return built(load_backbone=True, network={"name": "encoder_unet", **settings}).network


@pytest.mark.parametrize(
    ("settings", "depth", "other"),
    [
        ({"name": "ternausnet"}, 11, 16),
        ({"name": "fcn", "hidden": 16}, 16, 11),
        ({"name": "segnet"}, 16, 11),
        ({"name": "encoder_unet"}, 13, 11),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_weights_of_a_classifier(
    settings: dict[str, Any], depth: int, other: int, tmp_path: Path
) -> None:
    """The encoder's come from the file; one of another depth is named."""
    fitting, unfit = tmp_path / "fitting.safetensors", tmp_path / "unfit.safetensors"
    states = {n: vgg.VGG(n, width=4, batch_norm=False).state_dict() for n in (depth, other)}
    save_weights(fitting, states[depth], {})
    save_weights(unfit, states[other], {})

    def loaded(path: Path, load: bool = True) -> Any:
        weights: dict[str, Any] = {"width": 4, "weights": str(path)}
        if settings["name"] == "encoder_unet":
            weights = {"backbone": {"name": "vgg", "depth": depth, **weights}}
        return built(load_backbone=load, network={**settings, **weights}).network

    first = next(iter(states[depth].values()))
    assert torch.equal(next(loaded(fitting).encoder.parameters()), first)
    with pytest.raises(ConfigError, match=rf"model\.network(\.backbone)?\.weights: {unfit}: "):
        loaded(unfit)
    # Where a state dict follows, no file is read.
    assert not torch.equal(
        next(loaded(tmp_path / "no.safetensors", load=False).encoder.parameters()), first
    )


# --- around the network -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({}, IMAGENET_MEAN, IMAGENET_STD),
        ({"image_channels": 1}, [0.5], [0.25]),
        ({"image_channels": 5}, [0.5] * 5, [0.25] * 5),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}, [0.1, 0.2, 0.3], [1, 2, 3]),
    ],
)
def test_colours(settings: dict[str, Any], mean: Any, std: Any) -> None:
    preprocess = built(**settings).preprocess
    assert preprocess.mean.flatten().tolist() == pytest.approx(list(mean))
    assert preprocess.std.flatten().tolist() == pytest.approx(list(std))
    assert preprocess.size_divisor == 1


@pytest.mark.parametrize(
    ("settings", "classes", "outputs"),
    [
        ({}, 2, 3),
        ({"background": False}, 2, 2),
        ({"classes": "multilabel", "loss": {"bce": 1}}, 2, 2),
        ({"classes": "multilabel", "loss": {"bce": 1}}, 1, 1),
        ({"classes": "border"}, 1, 3),
    ],
)
def test_outputs_follow_the_kind_of_classes(
    settings: dict[str, Any], classes: int, outputs: int
) -> None:
    model = built(classes, **settings)
    assert model.network.num_outputs == outputs
    assert model.multi_label == (settings.get("classes") == "multilabel")


def test_losses_and_threshold() -> None:
    model = built(
        loss={"focal": 2.0, "dice": 0.5, "cross_entropy": 0},  # 0 leaves out what a base has
        loss_options={"focal": {"gamma": 1.5}},
        class_weights=[1, 2, 3],
        threshold=0.3,
    )
    assert model.threshold == 0.3
    loss: Any = model.loss
    assert loss.weights == {"focal": 2.0, "dice": 0.5}
    assert loss.options == {"focal": {"gamma": 1.5}, "dice": {}}
    assert loss.class_weights.tolist() == [1, 2, 3]
    assert loss.mode == "multiclass"


def overlapping(threshold: dict[str, float], names: list[str] | None) -> Any:
    settings = {"classes": "multilabel", "loss": {"bce": 1}, "threshold": threshold}
    config = SemanticConfig.model_validate({"name": "semantic", "network": UNET, **settings})
    return build_model(config, num_classes=2, class_names=names, load_backbone=False)


def test_a_threshold_for_each_class_in_the_order_of_the_labels() -> None:
    assert overlapping({"hair": 0.3, "face": 0.6}, ["face", "hair"]).threshold == (0.6, 0.3)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (
            {"face": 0.6, "hare": 0.3},
            r"model\.threshold names hare, but the classes are face, hair",
        ),
        ({"face": 0.6}, r"model\.threshold lacks hair: the classes are face, hair"),
    ],
)
def test_thresholds_of_other_classes(threshold: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overlapping(threshold, ["face", "hair"])
    with pytest.raises(ValueError, match="build_model needs class_names"):
        overlapping(threshold, None)


@pytest.mark.parametrize(
    ("settings", "kind", "own"),
    [
        ({"name": "components"}, ConnectedComponents, {}),
        ({"name": "distance_watershed", "h": 2}, DistanceWatershed, {"h": 2, "smoothing": 1}),
        (
            {"name": "marker_watershed", "marker_threshold": 0.6, "smoothing": 2},
            MarkerWatershed,
            {"marker_threshold": 0.6, "smoothing": 2, "min_marker_area": 1},
        ),
    ],
    ids=["components", "distance", "marker"],
)
@pytest.mark.parametrize("classes", ["multiclass", "multilabel", "border"])
def test_what_makes_objects(
    settings: dict[str, Any], kind: type[Any], own: dict[str, Any], classes: str
) -> None:
    shared = {
        "threshold": 0.4, "min_area": 5, "connectivity": 2, "fill_holes": True,
        "max_detections": 9,
    }  # fmt: skip
    loss = "bce" if classes == "multilabel" else "cross_entropy"
    model = built(1, classes=classes, loss={loss: 1}, instances={**settings, **shared})
    finder: Any = model.instances
    assert type(finder) is kind
    assert finder.layout == classes
    assert {name: getattr(finder, name) for name in {**shared, **own}} == {**shared, **own}


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5] * 3}, "give both image_mean and image_std, or neither"),
        (
            {"image_mean": [0.5] * 2, "image_std": [0.5] * 3},
            "image_mean has 2 values for 3 channels",
        ),
        (
            {"image_mean": [0.5] * 2, "image_std": [0.5], "image_channels": 2},
            "image_std has 1 values for 2 channels",
        ),
        (
            {"background": False, "instances": {"name": "components"}},
            "objects are made of what is not background: set background: true",
        ),
        ({"image_bits": 12}, "8 or 16"),
        ({"loss": {}}, "names no loss with a weight over 0"),
        ({"loss": {"dice": 0}}, "names no loss with a weight over 0"),
        ({"loss": {"dice": -1}}, "greater than or equal to 0"),
        ({"threshold": 1}, "less than 1"),
        ({"threshold": {"a": 1.5}, "classes": "multilabel"}, "less than 1"),
        ({"threshold": {"a": 0.5}}, "one for each class is for classes: multilabel, not multicl"),
        ({"network": {"name": "encoder_unet", "backbone": RESNET, "decoder_channels": []}}, "at l"),
        ({"network": {"name": "unet", "depth": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SemanticConfig.model_validate({"name": "semantic", "network": UNET, **settings})


@pytest.mark.parametrize(
    ("settings", "classes", "message"),
    [
        ({"class_weights": [1, 2]}, 2, r"model\.class_weights has 2 values for 3 outputs.*backgr"),
        (
            {"class_weights": [1, 2, 3], "classes": "multilabel", "loss": {"bce": 1}},
            2,
            r"class_weights has 3 values for 2 outputs$",
        ),
        ({"classes": "border"}, 2, r"model\.classes: border parts.*has 2: use multiclass or multi"),
        ({"background": False}, 1, r"model\.background: false leaves a single class.*multilabel"),
        ({"loss": {"dise": 1}}, 1, r"model\.loss: unknown loss 'dise': did you mean dice"),
        ({"loss": {"bce": 1}}, 1, r"model\.loss: bce is defined for mode 'multilabel'.*cross_entr"),
        (
            {"classes": "multilabel"},
            1,
            r"model\.loss: cross_entropy is defined for mode 'multiclass'.*use bce",
        ),
        (
            {"loss": {"focal": 1}, "loss_options": {"focal": {"gama": 1}}},
            1,
            r"model\.loss: unknown argument of loss 'focal' 'gama': did you mean gamma",
        ),
        ({"loss_options": {"focal": {}}}, 1, "unknown loss in options 'focal'"),
        (
            {
                "network": {
                    "name": "encoder_unet",
                    "backbone": RESNET,
                    "decoder_channels": [8, 8, 8, 8],
                }
            },
            1,
            r"decoder_channels has 4 values; this backbone halves the resolution 5 times: give 5",
        ),
        (
            {"network": {**UNET, "padding": "valid", "attention": True}},
            1,
            r"model\.network: .*attention",
        ),
        (
            {"network": {"name": "encoder_unet", "backbone": {**LITE, "model": "test_resnt"}}},
            1,
            r"^model\.network\.backbone: timm has no model 'test_resnt'",
        ),
        (
            {"network": {"name": "encoder_unet", "backbone": {**LITE, "strides": [4, 8, 16]}}},
            1,
            r"^model\.network\.backbone\.strides: this network joins .* 2, 4, 8, 16, 32: leave",
        ),
        (
            {"network": {"name": "fpn", "backbone": {**LITE, "strides": [2, 4, 8, 16, 32]}}},
            1,
            r"^model\.network\.backbone\.strides: this network joins .* strides 4, 8, 16, 32: lea",
        ),
    ],
)
def test_models_that_cannot_be(settings: dict[str, Any], classes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(classes, **settings)
