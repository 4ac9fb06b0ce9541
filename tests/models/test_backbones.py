from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models.resnet as tv_resnet
from safetensors.torch import load_file
from torch import Tensor, nn

from instseg.models.backbones import ResNet, TimmBackbone

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def stage_of(parameter: str) -> str:
    """The stage a ResNet's parameter belongs to."""
    return "stem" if parameter.startswith(("conv1.", "bn1.")) else parameter.split(".")[0]


def on_meta(depth: int = 18, **options) -> ResNet:
    """Shapes and flags without memory."""
    with torch.device("meta"):
        return ResNet(depth, **options)


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


def randomise_norms(module: nn.Module) -> None:
    """Running figures that a forgotten buffer would betray."""
    for norm in norms(module).values():
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1)
        nn.init.normal_(norm.bias, std=0.2)


def assert_same_maps(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert b.std() > 1e-3


class TestResNetShape:
    @pytest.mark.parametrize(
        ("depth", "channels"),
        [
            (18, [64, 128, 256, 512]),
            (34, [64, 128, 256, 512]),
            (50, [256, 512, 1024, 2048]),
            (101, [256, 512, 1024, 2048]),
        ],
    )
    def test_channels_and_strides(self, depth, channels):
        backbone = on_meta(depth)
        assert backbone.channels == channels
        assert backbone.strides == [4, 8, 16, 32]
        maps = backbone(torch.zeros(2, 3, 64, 96, device="meta"))
        assert [m.shape for m in maps] == [
            (2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
        ]

    @pytest.mark.parametrize("depth", [18, 34, 50, 101])
    def test_parameters_are_torchvisions_without_the_classifier(self, depth):
        with torch.device("meta"):
            theirs = getattr(tv_resnet, f"resnet{depth}")().state_dict()
        expected = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
        ours = {k: v.shape for k, v in on_meta(depth).state_dict().items()}
        assert ours == expected

    def test_odd_sizes_round_up(self):
        maps = on_meta()(torch.zeros(1, 3, 33, 97, device="meta"))
        assert [tuple(m.shape[-2:]) for m in maps] == [(9, 25), (5, 13), (3, 7), (2, 4)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depth": 152}, r"depth must be one of \[18, 34, 50, 101\], got 152"),
            ({"norm": "batch"}, "norm must be 'frozen' or 'live', got 'batch'"),
            ({"freeze_at": 6}, r"freeze_at must be in 0\.\.5, got 6"),
            ({"freeze_at": -1}, r"freeze_at must be in 0\.\.5, got -1"),
        ],
    )
    def test_unknown_options_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            ResNet(**options)


class TestResNetFreezing:
    @pytest.mark.parametrize("freeze_at", range(6))
    def test_live_norm_trains_all_later_stages(self, freeze_at):
        frozen = set(STAGES[:freeze_at])
        backbone = on_meta(norm="live", freeze_at=freeze_at).train()
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad == (stage_of(name) not in frozen), name
        for name, norm in norms(backbone).items():
            assert norm.training == (stage_of(name + ".") not in frozen), name

    @pytest.mark.parametrize("freeze_at", range(6))
    def test_frozen_norm_trains_no_norm_anywhere(self, freeze_at):
        frozen = set(STAGES[:freeze_at])
        backbone = on_meta(norm="frozen", freeze_at=freeze_at).train()
        of_norms = {f"{n}.{p}" for n in norms(backbone) for p in ("weight", "bias")}
        for name, parameter in backbone.named_parameters():
            trains = stage_of(name) not in frozen and name not in of_norms
            assert parameter.requires_grad == trains, name
        assert not any(norm.training for norm in norms(backbone).values())

    def test_default_is_frozen_norm_and_two_stages(self):
        default, explicit = on_meta(), on_meta(norm="frozen", freeze_at=2)
        assert [p.requires_grad for p in default.parameters()] == [
            p.requires_grad for p in explicit.parameters()
        ]

    def test_evaluation_and_back(self):
        backbone = on_meta(norm="live", freeze_at=2)
        before = [m.training for m in backbone.train().modules()]
        assert not any(m.training for m in backbone.eval().modules())
        assert [m.training for m in backbone.train().modules()] == before

    def test_train_of_an_enclosing_module_keeps_the_freeze(self):
        model = nn.Sequential(on_meta(norm="frozen")).train()
        assert model.training
        assert not any(norm.training for norm in norms(model).values())

    def test_a_copy_keeps_its_own_freeze(self):
        """An averaged model is a deep copy: its frozen modules are its own."""
        backbone = on_meta(norm="frozen")
        twin = copy.deepcopy(backbone)
        assert not any(norm.training for norm in norms(twin.train()).values())
        own = set(twin.modules())
        assert all(m in own for m in twin._frozen)

    def test_running_figures_move_in_live_stages_alone(self):
        backbone = ResNet(18, norm="live", freeze_at=2).train()
        before = {n: m.running_mean.clone() for n, m in norms(backbone).items()}
        backbone(torch.randn(2, 3, 32, 64))
        moved = {
            n for n, m in norms(backbone).items() if not torch.equal(before[n], m.running_mean)
        }
        assert {stage_of(n + ".") for n in moved} == {"layer2", "layer3", "layer4"}
        assert moved == {n for n in before if stage_of(n + ".") in STAGES[2:]}

    def test_gradients_reach_what_trains(self):
        backbone = ResNet(18, norm="frozen", freeze_at=3).train()
        sum(m.square().mean() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
        with_gradient = {n for n, p in backbone.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in backbone.named_parameters() if p.requires_grad}
        assert {stage_of(n) for n in with_gradient} == {"layer3", "layer4"}


@cache
def classifier() -> tv_resnet.ResNet:
    torch.manual_seed(11)
    model = tv_resnet.resnet18(num_classes=7).eval()
    randomise_norms(model)
    return model


class TestResNetWeights:
    @torch.no_grad()
    def test_features_are_those_of_torchvisions_body(self):
        theirs = classifier()
        backbone = ResNet(18).eval()
        backbone.load_classifier(theirs.state_dict())
        image = torch.randn(1, 3, 50, 70)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        wanted = []
        for name in STAGES[1:]:
            x = getattr(theirs, name)(x)
            wanted.append(x)
        assert_same_maps(backbone(image), wanted)

    def test_the_classifier_and_the_counters_may_be_absent(self):
        """Files from before batch norm counted its batches have no counters."""
        state = {
            k: v
            for k, v in classifier().state_dict().items()
            if not k.startswith("fc.") and "num_batches" not in k
        }
        backbone = ResNet(18)
        trained = [p.requires_grad for p in backbone.parameters()]
        backbone.load_classifier(state)
        assert [p.requires_grad for p in backbone.parameters()] == trained
        assert torch.equal(backbone.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])

    def refused(self, state: dict[str, Tensor]) -> str:
        """The message, after checking that nothing was loaded."""
        backbone = ResNet(18)
        before = copy.deepcopy(backbone.state_dict())
        with pytest.raises(ValueError) as error:
            backbone.load_classifier(state)
        assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
        return str(error.value)

    def test_missing_key(self):
        state = dict(classifier().state_dict())
        del state["layer2.0.conv1.weight"]
        message = self.refused(state)
        assert message == "these weights are not of a ResNet-18: no key layer2.0.conv1.weight"

    def test_unknown_key(self):
        state = classifier().state_dict() | {"layer5.weight": torch.zeros(1)}
        assert self.refused(state).endswith("a ResNet-18: unknown key layer5.weight")

    def test_other_shape(self):
        state = classifier().state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
        assert "conv1.weight is [64, 1, 7, 7] there and [64, 3, 7, 7] here" in self.refused(state)

    def test_another_depth_names_four_keys_and_counts_the_rest(self):
        """ResNet-34 has 16 blocks, ResNet-18 has 8: 8 blocks of 12 tensors are too many."""
        with torch.device("meta"):
            state = tv_resnet.resnet34().state_dict()
        message = self.refused(state)
        assert message.count("unknown key") == 4
        assert message.endswith("; and 92 more")

    def test_nothing_at_all(self):
        """17 convolutions and 3 on shortcuts, each with 4 tensors of its norm: 100 in all."""
        message = self.refused({})
        assert message.count("no key") == 4
        assert message.endswith("; and 96 more")


TIMM = {
    "tf_efficientnet_lite0": [24, 40, 112, 320],
    "resnet18": [64, 128, 256, 512],
    "mobilenetv3_small_050": [8, 16, 24, 288],
}


class TestTimm:
    @pytest.mark.parametrize("name", list(TIMM))
    @torch.no_grad()
    def test_features_are_those_of_the_loaded_classifier(self, name):
        """timm's own way to a classifier's intermediate maps is the reference."""
        theirs = timm.create_model(name, num_classes=5).eval()
        randomise_norms(theirs)
        backbone = TimmBackbone(name).eval()
        backbone.load_classifier(theirs.state_dict())
        assert backbone.channels == TIMM[name]
        assert backbone.strides == [4, 8, 16, 32]
        image = torch.randn(1, 3, 32, 64)
        wanted = theirs.forward_intermediates(image, indices=(1, 2, 3, 4), intermediates_only=True)
        got = backbone(image)
        assert [m.shape for m in got] == [
            (1, c, 32 // s, 64 // s) for c, s in zip(TIMM[name], (4, 8, 16, 32), strict=True)
        ]
        assert_same_maps(got, wanted)

    @pytest.mark.parametrize(("norm", "live"), [("frozen", False), ("live", True)])
    def test_norm(self, norm, live):
        backbone = TimmBackbone("tf_efficientnet_lite0", norm=norm).train()
        of_norms = {f"{n}.{p}" for n in norms(backbone) for p in ("weight", "bias")}
        assert of_norms
        assert all(m.training == live for m in norms(backbone).values())
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad == (live or name not in of_norms), name

    def test_a_network_without_batch_norm(self):
        backbone = TimmBackbone("test_convnext").train()
        assert not norms(backbone)
        assert all(p.requires_grad for p in backbone.parameters())
        maps = backbone(torch.zeros(1, 3, 64, 64))
        assert [m.shape[1] for m in maps] == backbone.channels == [24, 32, 48, 64]
        assert [64 // m.shape[-1] for m in maps] == backbone.strides

    @pytest.mark.parametrize(
        "strides",
        [
            (2, 4),
            (16,),
        ],
    )
    def test_chosen_strides(self, strides):
        backbone = TimmBackbone("test_resnet", strides=strides)
        maps = backbone(torch.zeros(1, 3, 64, 64))
        assert backbone.strides == list(strides)
        assert [64 // m.shape[-1] for m in maps] == list(strides)
        assert [m.shape[1] for m in maps] == backbone.channels

    @pytest.mark.parametrize("channels", [1, 6])
    def test_image_channels(self, channels):
        backbone = TimmBackbone("test_resnet", in_channels=channels)
        assert len(backbone(torch.zeros(1, channels, 32, 32))) == 4

    def test_unknown_name_lists_near_names(self):
        with pytest.raises(ValueError, match=r"no model 'convnext_huge'; near names: .*convnext_"):
            TimmBackbone("convnext_huge")

    @pytest.mark.parametrize(
        ("name", "near"),
        [("resnet19", "resnet18"), ("tf_efficientnet_lite9", "tf_efficientnet_lite0")],
    )
    def test_a_name_with_one_wrong_letter_lists_the_right_one(self, name, near):
        with pytest.raises(ValueError, match=rf"no model '{name}'; near names: .*{near}\b"):
            TimmBackbone(name)

    def test_strides_must_rise(self):
        with pytest.raises(ValueError, match=r"strides must rise, got \[32, 8\]"):
            TimmBackbone("test_resnet", strides=(32, 8))

    def test_missing_stride(self):
        expected = r"test_convnext has maps of strides \[4, 8, 16, 32\], none of \[2, 64\]"
        with pytest.raises(ValueError, match=expected):
            TimmBackbone("test_convnext", strides=(2, 4, 64))

    def test_without_timm_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(
            ImportError, match=r"'resnet18' needs timm: pip install 'instseg\[timm\]'"
        ):
            TimmBackbone("resnet18")


class TestTimmWeights:
    def test_wrong_weights_are_named_in_full(self):
        state = timm.create_model("resnet18").state_dict()
        state["conv1.weight"] = state["conv1.weight"][:, :1]
        state["extra.weight"] = torch.zeros(1)
        del state["layer1.0.bn1.bias"]
        with pytest.raises(ValueError, match="these weights are not of timm") as error:
            TimmBackbone("resnet18").load_classifier(state)
        for part in (
            "timm's resnet18",
            "no key layer1.0.bn1.bias",
            "unknown key extra.weight",
            "conv1.weight is [64, 1, 7, 7] there and [64, 3, 7, 7] here",
        ):
            assert part in str(error.value)

    @pytest.mark.parametrize(
        "name",
        [
            "regnetx_002",
            "test_convnext",
            "mobilenetv4_conv_small",
        ],
    )
    def test_classifiers_of_other_families(self, name):
        backbone = TimmBackbone(name)
        state = timm.create_model(name).state_dict()
        backbone.load_classifier(state)
        assert torch.equal(next(backbone.parameters()), next(iter(state.values())))

    @pytest.mark.parametrize(
        "name",
        [
            "tf_efficientnet_lite0",
            "test_resnet",
        ],
    )
    @torch.no_grad()
    def test_a_classifier_for_the_finer_strides_alone(self, name):
        theirs = timm.create_model(name, num_classes=5).eval()
        backbone = TimmBackbone(name, strides=(4, 8)).eval()
        backbone.load_classifier(theirs.state_dict())
        image = torch.randn(1, 3, 32, 32)
        wanted = theirs.forward_intermediates(image, indices=(1, 2), intermediates_only=True)
        assert_same_maps(backbone(image), wanted)

    @pytest.mark.real_data
    @torch.no_grad()
    def test_published_lite0(self, real_data: Path):
        """The ImageNet file gives timm's own features of a real size."""
        path = real_data.parent / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"
        if not path.is_file():
            pytest.skip(f"no weights at {path}")
        state = load_file(path)
        features = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)
        ).eval()
        _, unused = features.load_state_dict(state, strict=False)
        assert all(k.startswith(("conv_head.", "bn2.", "classifier.")) for k in unused)
        backbone = TimmBackbone("tf_efficientnet_lite0").eval()
        backbone.load_classifier(state)
        image = torch.randn(1, 3, 64, 96)
        assert_same_maps(backbone(image), features(image))
