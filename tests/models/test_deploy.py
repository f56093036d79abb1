"""Deployed copies: the same answers from fewer steps, and nothing folded that may not be."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from vitrarium.configs.errors import UserError
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import Features, TransparentClassifier, build, save_model
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.evidence.features import PooledFeatures
from vitrarium.models.readouts.linear import Linear

BACKBONES = {
    "convnet": ("convnet", 4, ("std",)),
    "resnet20": ("resnet20", 19, ("std",)),
    "resnet10t": ("timm/resnet10t", 14, ("std",)),
    "tf_efficientnet_lite0": ("timm/tf_efficientnet_lite0", 49, ("std",)),
    "convnext_atto": ("timm/convnext_atto", 0, ("mean", "std")),
    "mobilenetv3": ("timm/mobilenetv3_small_050", 34, ("std",)),
    "vit": ({"name": "timm/vit_tiny_patch16_224", "image_size": 64}, 0, ("mean", "std")),
    # Cut inside a block: the shortcut is carried, and the norm at the cut is the last thing that runs.
    "cut": ({"name": "timm/resnet10t", "cut": "layer2.0.bn1"}, 6, ("std",)),
}


def disturb(model):
    """Running statistics and weights of norms as after training: all of them matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight, 0.5)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
                norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    return model.eval()


def pixels(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def relative(a, b):
    return float(((a - b).abs().max() / a.abs().max()).detach())


class Own(Backbone):
    """A backbone around any network, without padding of its own."""

    def __init__(self, network, channels, inputs=3):
        super().__init__()
        self.standardise_by((0.4, 0.5, 0.6, 0.3)[:inputs], (0.2, 0.3, 0.4, 0.25)[:inputs])
        self.network, self.cut, self.cuts, self.probe_size = network, "end", {"end": Cut(channels, 1)}, 12

    def forward(self, x):
        return Features(self.network(self.standardise(x)))


def around(network, channels, inputs=3):
    torch.manual_seed(0)
    backbone = Own(network, channels, inputs)
    layer = PooledFeatures(channels)
    return disturb(TransparentClassifier(backbone, layer, Linear(layer, 2), ("a", "b"))).double()


def check_same(model, deployed, inputs=3):
    x = pixels(3, inputs, 12, 12, dtype=torch.float64)
    before, after = model(x), deployed(x)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.features.map, before.features.map, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_answers_stay(name):
    backbone, norms, standardisation = BACKBONES[name]
    spec = {"backbone": backbone, "evidence": "features", "readout": "linear"}
    model = disturb(build(spec, ("a", "b", "c"), None, Preprocessing(64), seed=0))
    x = pixels(3, 3, 64, 64)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = model.to(dtype)
        deployed = model.deploy()
        with torch.no_grad():
            before, after = model(x.to(dtype)), deployed(x.to(dtype))
        assert relative(before.logits, after.logits) < tolerance
        assert relative(before.evidence.activations, after.evidence.activations) < tolerance
    assert not [name for name, module in deployed.named_modules() if module.training]
    report = deployed.deploy_report
    assert (len(report.norms), report.norms_left, report.standardisation) == (norms, (), standardisation)
    left = [m for m in deployed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not left
    assert report.parameters[1] < report.parameters[0] or not norms


def test_branches_of_timm_become_one():
    spec = {"backbone": "timm/mobileone_s0", "evidence": "features", "readout": "linear"}
    model = disturb(build(spec, ("a", "b"), None, Preprocessing(64), seed=0)).double()
    deployed, x = model.deploy(), pixels(2, 3, 64, 64, dtype=torch.float64)
    assert relative(model(x).features.map, deployed(x).features.map) < 1e-9
    assert deployed.deploy_report.parameters[1] < 0.5 * deployed.deploy_report.parameters[0]
    assert "backbone" in deployed.deploy_report.plain


def test_a_fold_is_the_formula():
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4, eps=0.1)))
    model = around(network, 4)
    deployed = model.deploy()
    conv, norm, std, mean = network.conv, network.norm, model.backbone.std, model.backbone.mean
    for out in range(4):
        factor = norm.weight[out] / (norm.running_var[out] + 0.1).sqrt()
        weight = torch.stack([conv.weight[out, c] / std[c] for c in range(3)])
        shift = sum((weight[c] * mean[c]).sum() for c in range(3))
        torch.testing.assert_close(deployed.backbone.network.conv.weight[out], weight * factor)
        bias = (conv.bias[out] - shift - norm.running_mean[out]) * factor + norm.bias[out]
        torch.testing.assert_close(deployed.backbone.network.conv.bias[out], bias)
    assert isinstance(deployed.backbone.network.norm, nn.Identity)
    check_same(model, deployed)


class Wired(nn.Module):
    """Layers joined by a function."""

    def __init__(self, wiring, **layers):
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.wiring(self, x)


def tied(first, second):
    second.weight = first.weight
    return second


class Standardised(nn.Conv2d):
    """Its weight is standardised in the forward pass: a factor on it would be undone."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class WithoutBias(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


CONV, NORM = (lambda: nn.Conv2d(3, 3, 1)), (lambda: nn.BatchNorm2d(3))
TIED = nn.Conv2d(3, 3, 1, bias=False)
NOT_FOLDED = {
    "the output goes elsewhere too": Wired(lambda s, x: s.b(y := s.a(x)) + y, a=CONV(), b=NORM()),
    "by a view of it": Wired(lambda s, x: s.b(y := s.a(x)) + y[:, :1], a=CONV(), b=NORM()),
    "two norms on one convolution": Wired(lambda s, x: s.b(y := s.a(x)) + s.c(y), a=CONV(), b=NORM(), c=NORM()),
    "a convolution used twice": Wired(lambda s, x: s.b(s.a(s.a(x))), a=CONV(), b=NORM()),
    "a norm used twice": Wired(lambda s, x: s.b(s.b(s.a(x))), a=CONV(), b=NORM()),
    "a weight shared with another layer": Wired(
        lambda s, x: s.b(s.a(x)) + s.c(x), a=TIED, c=tied(TIED, nn.Conv2d(3, 3, 1, bias=False)), b=NORM()
    ),
    "a norm before the convolution": Wired(lambda s, x: s.a(s.b(x)), a=nn.Conv2d(3, 3, 3, padding=1), b=NORM()),
    "something between": Wired(lambda s, x: s.b(s.a(x).relu()), a=CONV(), b=NORM()),
    "a weight that is computed": Wired(lambda s, x: s.b(s.a(x)), a=Standardised(3, 3, 1), b=NORM()),
    "a layer that ignores its bias": Wired(lambda s, x: s.b(s.a(x)), a=WithoutBias(3, 3, 1, bias=False), b=NORM()),
    "a transposed convolution": Wired(lambda s, x: s.b(s.a(x)), a=nn.ConvTranspose2d(3, 3, 1), b=NORM()),
}


@pytest.mark.parametrize("why", NOT_FOLDED)
def test_what_must_not_be_folded_is_not(why):
    model = around(copy.deepcopy(NOT_FOLDED[why]), 3)
    deployed = model.deploy()
    assert deployed.deploy_report.norms == ()
    assert "backbone.network.b" in deployed.deploy_report.norms_left
    check_same(model, deployed)


def test_a_map_that_others_see_is_not_changed():
    """The norm is the readout's; the map before it is where the units look."""

    class Normed(Linear):
        def __init__(self, layer, classes):
            super().__init__(layer, classes)
            self.norm = nn.BatchNorm2d(4)

        def score(self, vector, evidence):
            return self.linear(self.norm(evidence.maps).mean((2, 3)))

    backbone, layer = Own(nn.Conv2d(3, 4, 1), 4), PooledFeatures(4)
    model = disturb(TransparentClassifier(backbone, layer, Normed(layer, 2), ("a", "b"))).double()
    deployed = model.deploy()
    assert deployed.deploy_report.norms_left == ("readout.norm",)
    check_same(model, deployed)


def test_statistics_of_the_batch_stay():
    model = around(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 4)
    deployed = model.deploy()
    assert deployed.deploy_report.norms == ()
    check_same(model, deployed)


def test_linear_layers_and_joint_activations_fold():
    from timm.layers import BatchNormAct2d

    class Projected(PooledFeatures):
        def __init__(self, channels):
            super().__init__(channels)
            self.project, self.norm = nn.Linear(channels, channels), nn.BatchNorm1d(channels)

        def forward(self, features):
            evidence = super().forward(features)
            units = self.norm(self.project(evidence.activations))
            return type(evidence)(units, units)

    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4, act_layer=nn.SiLU))
    layer = Projected(4)
    model = disturb(TransparentClassifier(Own(network, 4), layer, Linear(layer, 2), ("a", "b"))).double()
    deployed = model.deploy()
    assert deployed.deploy_report.norms == ("backbone.network.1", "evidence.norm")
    assert isinstance(deployed.backbone.network[1], nn.SiLU)
    check_same(model, deployed)


class TestStandardisation:
    @pytest.mark.parametrize(
        ("network", "inputs", "folded"),
        [
            (nn.Conv2d(3, 4, 3), 3, ("mean", "std")),
            (nn.Conv2d(3, 4, 3, bias=False), 3, ("mean", "std")),
            (nn.Conv2d(3, 4, 3, padding=1), 3, ("std",)),
            (nn.Conv2d(3, 4, 3, padding="same"), 3, ("std",)),
            (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 3, ()),
            (nn.Conv2d(4, 6, 3, groups=2), 4, ("mean", "std")),
            (nn.Conv2d(3, 6, 3, groups=3, padding=1), 3, ("std",)),
            (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3)), 3, ("std",)),
            (nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(3, 4, 3)), 3, ()),
            (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), 3, ()),
            (Wired(lambda s, x: s.a(x) + x.mean((1, 2, 3), keepdim=True), a=nn.Conv2d(3, 4, 3)), 3, ()),
        ],
    )
    def test_goes_where_it_may(self, network, inputs, folded):
        channels = next(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))
        model = around(copy.deepcopy(network), channels, inputs)
        deployed = model.deploy()
        assert deployed.deploy_report.standardisation == folded
        check_same(model, deployed, inputs)
        # Twice is no more than once.
        check_same(model, deployed.deploy(), inputs)

    def test_of_a_backbone_with_its_own_is_left_alone(self):
        class Other(Own):
            def standardise(self, x):
                return x * 2 - 1

        layer = PooledFeatures(4)
        model = TransparentClassifier(Other(nn.Conv2d(3, 4, 3), 4), layer, Linear(layer, 2), ("a", "b")).double()
        deployed = model.eval().deploy()
        assert deployed.deploy_report.standardisation == ()
        check_same(model, deployed)

    def test_still_refuses_other_images(self):
        deployed = around(nn.Conv2d(3, 4, 3), 4).deploy()
        with pytest.raises(UserError, match="takes images"):
            deployed(pixels(1, 4, 12, 12))


class TestPlainForms:
    def test_are_asked_for_from_the_leaves_upwards(self):
        seen = []

        class Inner(nn.Conv2d):
            def deployed(self):
                seen.append("inner")
                plain = nn.Conv2d(3, 4, 1, dtype=self.weight.dtype)
                plain.load_state_dict(self.state_dict())
                return plain.train()

        class Outer(nn.Sequential):
            def deployed(self):
                seen.append(type(self[0]))
                return nn.Sequential(*self)

        shared = Inner(3, 4, 1)
        model = around(Wired(lambda s, x: s.a(x) + s.b[0](x), a=Outer(shared), b=nn.Sequential(shared)), 4)
        deployed = model.deploy()
        assert seen == ["inner", nn.Conv2d]
        assert type(deployed.backbone.network.a) is nn.Sequential
        assert deployed.backbone.network.a[0] is deployed.backbone.network.b[0]
        assert deployed.deploy_report.plain == ("backbone.network.a.0", "backbone.network.a")
        assert not any(m.training for m in deployed.modules())
        check_same(model, deployed)

    def test_parts_may_change_altogether(self):
        class Flat(Linear):
            def deployed(self):
                plain = Linear.__new__(Linear)
                plain.__dict__ = dict(self.__dict__)
                return plain

        layer = PooledFeatures(4)
        model = TransparentClassifier(Own(nn.Conv2d(3, 4, 1), 4), layer, Flat(layer, 2), ("a", "b")).double().eval()
        deployed = model.deploy()
        assert type(deployed.readout) is Linear
        assert type(model.readout) is Flat
        check_same(model, deployed)

    def test_parametrisations_are_computed_once(self):
        model = around(nn.Sequential(nn.Conv2d(3, 4, 1), orthogonal(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)), 4)
        deployed = model.deploy()
        assert type(deployed.backbone.network[1]) is nn.Conv2d
        assert len(deployed.deploy_report.norms) == 1
        check_same(model, deployed)


class TestTheCopy:
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": "concepts", "readout": "linear"}  # noqa: RUF012

    def build(self):
        concepts = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": ()})
        return disturb(build(self.spec, ("a", "b"), concepts, Preprocessing(16), seed=0))

    def test_leaves_the_model_as_it_is(self):
        model = self.build().train()
        before = copy.deepcopy(model.state_dict())
        deployed = model.deploy()
        assert model.training
        assert model.deploy_report is None
        assert all(p.requires_grad for p in model.parameters())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert not deployed.training
        assert not any(p.requires_grad for p in deployed.parameters())

    def test_takes_corrections_by_name(self):
        model = self.build()
        picture = (pixels(20, 24, 3) * 255).byte().numpy()
        ours, theirs = (m.predict(picture, do={"colour": "blue"}) for m in (model, model.deploy()))
        assert theirs.corrected == ours.corrected == ["colour=red", "colour=blue"]
        assert theirs.contributions == pytest.approx(ours.contributions, abs=1e-5)
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-5)

    def test_without_folding_keeps_every_step(self):
        model = self.build()
        deployed, x = model.deploy(fold=False), pixels(2, 3, 16, 16)
        torch.testing.assert_close(deployed(x).logits, model(x).logits)
        assert deployed.deploy_report.norms == deployed.deploy_report.standardisation == ()
        assert deployed.state_dict().keys() == model.state_dict().keys()

    def test_lies_in_memory_as_the_maps_do(self):
        weight = self.build().deploy().backbone.network.stage2.conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)

    def test_leaves_out_what_only_training_needs(self):
        model = self.build()
        model.auxiliary["decoder"], model.auxiliary["policy"] = nn.Linear(2, 2), nn.Linear(2, 2)
        model.train_only = {"decoder"}
        assert list(model.deploy().auxiliary) == ["policy"]
        assert list(model.auxiliary) == ["decoder", "policy"]

    def test_is_not_saved_as_a_model_folder(self, tmp_path):
        with pytest.raises(UserError, match="deployed model"):
            save_model(self.build().deploy(), tmp_path / "model")
        assert not (tmp_path / "model").exists()

    def test_says_what_was_done(self):
        said = str(self.build().deploy().deploy_report)
        assert "2 batch norms folded" in said
        assert "std folded into the first convolution" in said
