from __future__ import annotations

import copy
import json
import sys
import types

import pytest
import torch
from torch import nn

from tests.models.backbones import networks
from tests.models.backbones.networks import Borrowing, BreaksInTraining, Classifier, Fixed, Mapped, Tokens, Wilful
from vitrarium.configs.errors import UserError
from vitrarium.models import build, load_model, save_model
from vitrarium.models.backbones import build_backbone, describe_backbone
from vitrarium.models.backbones.base import Backbone, Cut
from vitrarium.models.backbones.module_adapter import ModuleBackbone
from vitrarium.models.backbones.own_module import backbone_from, taken
from vitrarium.models.backbones.splitting import Stem
from vitrarium.models.types import Features


@pytest.fixture
def allowed(monkeypatch):
    """The networks of the tests as an allowed package ``ownnets``."""
    package = types.ModuleType("ownnets")
    for name, entry in vars(networks).items():
        if isinstance(entry, type) and entry.__module__ == networks.__name__:
            setattr(package, name, type(name, (entry,), {"__module__": "ownnets"}))
    package.fails = lambda: 1 / 0
    package.number = lambda: 3
    package.fails.__module__ = package.number.__module__ = "ownnets"
    monkeypatch.setitem(sys.modules, "ownnets", package)
    monkeypatch.setenv("VITRARIUM_ALLOW", "ownnets")
    return package


def expected(network, x, mean=0.0, std=1.0):
    """The definition: the network's own stages on standardised pixels, in evaluation."""
    with torch.no_grad():
        return copy.deepcopy(network).eval().features((x - mean) / std)


def test_a_network_whose_output_is_a_map_needs_no_cut():
    network = Mapped()
    backbone = backbone_from(network, mean=0.5, std=[0.1, 0.2, 0.4])
    assert isinstance(backbone, ModuleBackbone)
    assert (backbone.cut, backbone.channels, backbone.stride) == ("final", 8, 4)
    assert {name: tuple(cut) for name, cut in backbone.cuts.items() if "." not in name} == {
        "stage1": (4, 2),
        "stage2": (8, 4),
        "final": (8, 4),
    }
    x = torch.rand(2, 3, 24, 40)
    got = backbone.eval()(x)
    assert isinstance(got, Features)
    torch.testing.assert_close(got.map, expected(network, x, 0.5, torch.tensor([0.1, 0.2, 0.4])[:, None, None]))


def test_a_classifier_says_where_it_can_be_cut():
    with pytest.raises(UserError, match=r"ends in a tensor of shape \(B, 5\).*stage2 \(8 channels, stride 4\), stage1"):
        backbone_from(Classifier())


@pytest.mark.parametrize(("kind", "how"), [(Classifier, Stem), (Wilful, ModuleBackbone)])
def test_a_cut_gives_the_map_of_the_module(kind, how):
    network = kind()
    backbone = backbone_from(network, cut="stage2").eval()
    assert type(backbone) is how
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(backbone(x).map, expected(network, x))
    # What lies above the cut is gone; the network that was given is whole.
    assert not [name for name, _ in backbone.named_parameters() if "head" in name]
    assert isinstance(network.head, nn.Linear)
    assert ("cannot cut there" in backbone.note) == (kind is Wilful)


@pytest.mark.parametrize("kind", [Classifier, Wilful, Mapped])
@pytest.mark.parametrize("cut", ["stage1", "stage2.1", "stage2"])
def test_contract(kind, cut):
    """One shape as told, gradients to pixels and weights, modes, float64, copies, deeper cuts refused."""
    torch.manual_seed(0)
    backbone = backbone_from(kind(), cut=cut)
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    map = backbone(x).map
    assert map.shape == (4, backbone.channels, 32 // backbone.stride, 32 // backbone.stride)
    weights = [p for n, p in backbone.named_parameters() if "second" not in n]
    gradients = torch.autograd.grad(map.square().sum(), [x, *weights])
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].abs().sum() > 0
    for mode in (True, False):
        assert all(m.training == mode for m in backbone.train(mode).modules())
    held = backbone(x).map
    twin = copy.deepcopy(backbone)
    torch.testing.assert_close(twin(x).map, held)
    double = twin.double()(x.double()).map
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), held, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"already ends|stops at"):
        backbone.split("stage1.0")
    with pytest.raises(UserError, match="in_channels"):
        backbone(torch.rand(1, 1, 32, 32))


class Plain(nn.Module):
    """A backbone as torch.export likes it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x).map


def test_torch_export_follows_a_cut_by_torch_fx_and_refuses_a_stop():
    x = torch.rand(2, 3, 32, 32)
    plain = Plain(backbone_from(Classifier(), cut="stage2").eval())
    torch.testing.assert_close(torch.export.export(plain, (x,)).module()(x), plain(x))
    plain = Plain(backbone_from(networks.Sized(), cut="stage2").eval())
    assert "stops at 'stage2'" in plain.backbone.note
    with pytest.raises(UserError, match=r"torch.export cannot follow it either"):
        torch.export.export(plain, (x,))


def test_a_map_at_the_end_leaves_a_tail_and_a_stop_leaves_none():
    network = Mapped()
    stem = backbone_from(network, cut="stage1.0").eval()
    rest, channels = stem.tail()
    x = torch.rand(2, 3, 32, 32)
    features = stem(x)
    assert channels == 8
    torch.testing.assert_close(rest.eval()(features.map, *features.carry), expected(network, x))
    for kind, said in ((Wilful, "nothing above it can be a readout"), (Classifier, "nothing is left above")):
        with pytest.raises(UserError, match=said):
            backbone_from(kind(), cut="stage2").tail()
    with pytest.raises(UserError, match="there is no map above a cut"):
        ModuleBackbone(Classifier()).split("stage1")


def test_what_training_needs_stays_where_the_network_stops():
    backbone = backbone_from(Wilful(), cut="stage2")
    assert isinstance(backbone.network.second, nn.Linear)
    assert isinstance(backbone.network.head, nn.Identity)
    below = backbone_from(Wilful(), cut="stage1.0").network
    assert isinstance(below.second, nn.Identity)
    assert isinstance(below.stage1[1], nn.Identity)


def test_a_layer_whose_weights_are_read_without_a_call_stays():
    network = Borrowing()
    backbone = ModuleBackbone(copy.deepcopy(network), "stage2").truncate("stage2")
    assert backbone.note
    with pytest.raises(UserError, match="runs 2 times"):
        backbone_from(network, cut="stage2.2")
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(x).map, expected(network, x))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_make_a_map_without_those_in_front(prefix):
    network = Tokens(prefix).eval()
    backbone = backbone_from(network).eval()
    assert backbone.layout == ("tokens", prefix)
    assert (backbone.channels, backbone.stride) == (6, 8)
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        tokens = network(x)[:, prefix:]
        map = backbone(x).map
    for row, column in ((0, 0), (1, 5), (3, 2)):
        torch.testing.assert_close(map[:, :, row, column], tokens[:, 6 * row + column])
    told = backbone_from(network, prefix_tokens=prefix).eval()
    torch.testing.assert_close(told(x).map, map)
    with pytest.raises(UserError, match="ends in a tensor"):
        backbone_from(network, prefix_tokens=prefix + 1)


def test_channels_last_are_told_from_rows():
    network = Tokens(width=9, last=True).eval()
    backbone = backbone_from(network).eval()
    x = torch.rand(2, 3, 32, 32)
    assert backbone.layout.kind == "last"
    torch.testing.assert_close(backbone(x).map, network(x).permute(0, 3, 1, 2))


def test_a_network_with_a_size_of_its_own():
    assert backbone_from(Fixed(), cut="stage2", image_size=32).image_size == 32
    # What fails above the cut does not matter.
    assert backbone_from(Fixed(), cut="stage2").image_size is None
    whole = ModuleBackbone(Fixed())
    assert (whole.image_size, whole.probe_size) == (32, 32)
    with pytest.raises(UserError, match=r"takes no images \(B, 3, H, W\) of 48 pixels: mat1.*image_size"):
        backbone_from(Fixed(), image_size=48)
    with pytest.raises(UserError, match="takes 32 x 32 pixels"):
        backbone_from(Fixed(), cut="stage2", image_size=32)(torch.rand(1, 3, 64, 64))


def test_looking_changes_nothing():
    """Statistics, modes, random state and gradients are as they were."""
    network = Mapped()
    network.stage1.eval()
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(3)
    expected_draw = torch.rand(2)
    torch.manual_seed(3)
    backbone = ModuleBackbone(network)
    backbone.places(torch.zeros(1, 3, 32, 32))
    taken(backbone_from(network, cut="stage2"))
    assert torch.equal(torch.rand(2), expected_draw)
    for name, value in backbone.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert network.stage2.training
    assert not network.stage1.training
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        (nn.MaxPool2d(2), {}, "MaxPool2d has no parameters"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)), {"cut": "0"}, "no parameters up to '0'"),
        (nn.LazyConv2d(4, 3), {}, "lazy layers"),
        (Mapped().half(), {}, "computes in torch.float16"),
        (networks.NeedsTwo(), {}, "takes no images .* missing 1 required positional argument: 'text'"),
        (nn.Linear(3, 4), {}, "takes no images|ends in a tensor"),
        (Mapped(), {"in_channels": 1}, "of 28 to 384 pixels: .*in_channels"),
        (Mapped(), {"cut": "stage3"}, "no module 'stage3' to cut at; did you mean 'stage"),
        (
            Classifier(),
            {"cut": "head"},
            r"gives a tensor of shape \(B, 5\): no map; set backbone.cut .* stage2",
        ),
        (networks.OfBatch(), {}, "depends on the other images of its batch"),
        (networks.Random(), {}, "another map each time"),
        (networks.Unbounded(), {}, "not finite"),
        (BreaksInTraining(), {}, "takes no images .* no teacher was given"),
        (BreaksInTraining(), {"cut": "stage2"}, "no teacher was given"),
        (networks.OtherSizeInTraining(), {}, r"gives \(2, 8, 8, 8\) in training and \(2, 8, 16, 16\)"),
        (Mapped(), {"std": 0.0}, "above 0"),
        (Mapped(), {"mean": [0.5, 0.5]}, "has 2 numbers, the images 3 channels"),
        (Mapped(), {"options": {"width": 3}}, "built already"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), {}, "lazy"),
    ],
)
def test_refusals(network, options, said):
    with pytest.raises(UserError, match=said):
        backbone_from(network, **options)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"module": "ownnets.Clasifier"}, "ownnets has no 'Clasifier'; did you mean 'Classifier'"),
        ({"module": "ownnets.Classifier", "options": {"widht": 3}}, "no option 'widht'; did you mean 'width'"),
        ({"module": "ownnets.fails"}, "could not be built .ZeroDivisionError: division by zero"),
        ({"module": "ownnets.number"}, "makes a int, not a torch.nn.Module"),
        ({"name": "convnet", "module": "ownnets.Classifier"}, "no option 'module'"),
        ({"name": "module"}, "needs the option 'module'"),
        ({"module": "timm.create_model"}, "not declared to make a network"),
        ({"module": "vitrarium.models.folder.load_model"}, "not declared to make a network"),
        ({"module": "torchvision.models.resnet18", "options": {"weights": "DEFAULT"}}, "backbone.weights"),
        ({"module": "ownnets.Mapped", "structure": "0"}, r"handed over as an object.*backbone=Mapped\(...\)"),
        ("other.Net", "code of the package 'other'"),
    ],
)
def test_refusals_of_names(allowed, spec, said):
    with pytest.raises(UserError, match=said):
        build_backbone(spec)


def test_a_name_with_options_is_built_with_them(allowed):
    spec = {"module": "ownnets.Classifier", "cut": "stage2", "options": {"width": 3}, "mean": 0.25}
    torch.manual_seed(1)
    backbone = build_backbone(spec).eval()
    torch.manual_seed(1)
    network = Classifier(width=3)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(backbone(x).map, expected(network, x, 0.25))
    assert backbone.origin == {"name": "module", **spec}
    assert [row.cut for row in describe_backbone("ownnets.Classifier")][-1] == "stage2"


def test_no_weights_are_fetched_by_the_way(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    spec = {"module": "torchvision.models.segmentation.lraspp_mobilenet_v3_large", "cut": "backbone.4"}
    assert build_backbone(spec).channels == 40


def test_hub_weights_of_torchvision_bring_their_standardisation(monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    state = {name: value + 1 for name, value in resnet18().state_dict().items()}
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    spec = {"module": "torchvision.models.resnet18", "cut": "layer1", "weights": "hub"}
    backbone = build_backbone(spec)
    assert torch.equal(backbone.network.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert backbone.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert backbone.weight_report.fraction == 1


def test_described_numbers_are_those_of_the_cut_backbones(allowed):
    for name in ("ownnets.Classifier", "ownnets.Wilful", "ownnets.Mapped"):
        rows = describe_backbone({"module": name, "cut": "stage2.0", "weights": "not/read"}, size=40)
        assert {"stage1", "stage2.0", "stage2"} <= {row.cut for row in rows}
        for row in rows:
            part = build_backbone({"module": name, "cut": row.cut}).eval()
            assert (row.channels, row.stride) == (part.channels, part.stride)
            assert part(torch.rand(1, 3, 40, 40)).map.shape[2:] == (row.height, row.width)
            kept = {n: p.numel() for n, p in part.named_parameters() if "second" not in n}
            assert row.parameters == sum(kept.values())


PARTS = {"evidence": "features", "readout": "linear"}


def test_models_never_share_weights():
    backbone = backbone_from(Mapped())
    first, second = (build({"backbone": backbone, **PARTS}, ["a", "b"]) for _ in range(2))
    given = {p.data_ptr() for p in backbone.parameters()}
    ours, theirs = ({p.data_ptr() for p in model.backbone.parameters()} for model in (first, second))
    assert len(given | ours | theirs) == 3 * len(given)


@pytest.mark.parametrize("kind", [Classifier, Wilful, Tokens])
def test_a_network_handed_over_is_saved_and_loaded_with_its_like(kind, tmp_path):
    network = kind()
    cut = None if kind is Tokens else "stage2"
    model = build({"backbone": backbone_from(network, cut=cut, mean=0.5), **PARTS}, ["a", "b"]).eval()
    save_model(model, tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())["spec"]["backbone"]
    assert written["module"] == f"{kind.__module__}.{kind.__qualname__}"
    assert (written["mean"], len(written["structure"])) == (0.5, 16)
    with pytest.raises(UserError, match=r"handed over as an object.*load\(path, backbone="):
        load_model(tmp_path / "model")
    x = torch.rand(2, 3, 32, 32)
    for again in (kind(), backbone_from(kind(), cut=cut, mean=0.5)):
        loaded = load_model(tmp_path / "model", backbone=again)
        assert torch.equal(loaded(x).logits, model(x).logits)
        # And once more: what was loaded can be saved and loaded.
        save_model(loaded, tmp_path / "twice")
        assert torch.equal(load_model(tmp_path / "twice", backbone=again)(x).logits, model(x).logits)


def test_another_network_is_refused_when_loading(tmp_path, allowed):
    build_and_save = {"backbone": backbone_from(Classifier(), cut="stage2"), **PARTS}
    save_model(build(build_and_save, ["a", "b"]), tmp_path / "model")
    for other, said in (
        (Classifier(width=5), "its structure is"),
        (Wilful(), "its structure is"),
        (backbone_from(Classifier(), cut="stage1"), "its cut is stage1, not stage2"),
        (Tokens(), "no module 'stage2'"),
    ):
        with pytest.raises(UserError, match=said):
            load_model(tmp_path / "model", backbone=other)
    save_model(build({"backbone": "convnet", **PARTS}, ["a", "b"]), tmp_path / "convnet")
    with pytest.raises(UserError, match="the model has its own, 'convnet'"):
        load_model(tmp_path / "convnet", backbone=Classifier())


def test_a_class_with_options_is_loaded_by_its_name(tmp_path, allowed, monkeypatch):
    backbone = backbone_from(allowed.Classifier, cut="stage2", options={"width": 3})
    model = build({"backbone": backbone, **PARTS}, ["a", "b"]).eval()
    save_model(model, tmp_path / "model")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / "model")(x).logits, model(x).logits)
    monkeypatch.setenv("VITRARIUM_ALLOW", "")
    with pytest.raises(UserError, match="VITRARIUM_ALLOW=ownnets"):
        load_model(tmp_path / "model")
    again = load_model(tmp_path / "model", backbone=allowed.Classifier(width=3))
    assert torch.equal(again(x).logits, model(x).logits)


def test_classes_that_cannot_be_written_down_are_handed_over():
    class Local(Mapped):
        pass

    for entry, options in ((Local, None), (lambda: Mapped(), None), (networks.Configured, {"activation": nn.GELU})):
        assert "structure" in backbone_from(entry, options=options).origin
    assert "structure" not in backbone_from(Mapped).origin


class OwnBackbone(Backbone):
    """Somebody's own subclass of the contract."""

    def __init__(self):
        super().__init__()
        self.standardise_by((0.5,) * 3, (0.5,) * 3)
        self.network = Mapped()
        self.cuts, self.cut = {"end": Cut(8, 4)}, "end"

    def forward(self, x):
        return Features(self.network(self.standardise(x)))


def test_a_backbone_of_ones_own_is_taken_as_it_is(tmp_path):
    for given in (OwnBackbone(), backbone_from(OwnBackbone())):
        model = build({"backbone": given, **PARTS}, ["a", "b"]).eval()
        save_model(model, tmp_path / "model")
        loaded = load_model(tmp_path / "model", backbone=OwnBackbone())
        x = torch.rand(1, 3, 32, 32)
        assert torch.equal(loaded(x).logits, model(x).logits)
    with pytest.raises(UserError, match="a backbone with its own mean"):
        backbone_from(OwnBackbone(), mean=0.1)
    model = build({"backbone": build_backbone({"name": "convnet", "widths": [4, 4]}), **PARTS}, ["a", "b"])
    save_model(model, tmp_path / "convnet")
    assert load_model(tmp_path / "convnet").backbone.channels == 4
