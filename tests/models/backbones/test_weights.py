from __future__ import annotations

import logging
import pickle
import socket

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitrarium.configs.errors import UserError
from vitrarium.models.backbones import build_backbone
from vitrarium.models.backbones.weight_sources import WEIGHT_SOURCES, FoundWeights
from vitrarium.models.backbones.weights import fold_input, load_weights

SMALL = {"name": "convnet", "widths": [4, 6]}


def filled(spec=SMALL, seed=1):
    torch.manual_seed(seed)
    backbone = build_backbone(spec)
    for buffer in backbone.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.1, 1)
    return backbone


def same(a, b):
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "th", "ckpt", "bin"])
def test_every_kind_of_file(tmp_path, ending):
    theirs, path = filled().network.state_dict(), tmp_path / f"weights.{ending}"
    save_file(theirs, path) if ending == "safetensors" else torch.save(theirs, path)
    backbone = build_backbone({**SMALL, "weights": str(path)})
    assert backbone.weight_report.complete
    assert backbone.weight_report.fraction == 1
    assert set(backbone.weight_report.matched) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in backbone.network.state_dict().items())


@pytest.mark.parametrize("envelope", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "module.model.", "_orig_mod.encoder."])
def test_envelopes_and_prefixes_are_taken_off(tmp_path, envelope, prefix):
    theirs = {prefix + name: value for name, value in filled().network.state_dict().items()}
    content = {**theirs, f"{prefix}head.weight": torch.zeros(2, 6)}
    for key in reversed(envelope):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    report = load_weights(backbone := build_backbone(SMALL), tmp_path / "w.pt")
    assert report.unexpected == (f"{prefix}head.weight",)
    assert report.complete
    assert torch.equal(backbone.network.stage1.conv1.weight, theirs[f"{prefix}stage1.conv1.weight"])


@pytest.mark.parametrize("inside", ["model", ""])
def test_a_folder_of_ours_brings_its_standardisation(tmp_path, inside):
    source = filled()
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    save_file({**state, "readout.weight": torch.zeros(2, 6)}, folder / "model.safetensors")
    backbone = build_backbone({**SMALL, "weights": str(tmp_path)})
    assert same(backbone, source)
    assert not torch.equal(backbone.mean, torch.full((3,), 0.5))
    assert backbone.weight_report.unexpected == ("readout.weight",)
    with pytest.raises(UserError, match=r"holds no model/model\.safetensors"):
        load_weights(backbone, _empty(tmp_path / "empty"))


def _empty(folder):
    folder.mkdir()
    return folder


def test_a_cut_backbone_takes_whole_weights_into_stem_and_tail(tmp_path):
    source = filled("resnet20")
    save_file(source.network.state_dict(), tmp_path / "w.safetensors")
    spec = {"name": "resnet20", "cut": "layer3.0.bn1", "weights": str(tmp_path / "w.safetensors")}
    stem = build_backbone(spec).eval()
    tail = stem.tail()[0].eval()
    source.standardise_by(tuple(stem.mean.tolist()), tuple(stem.std.tolist()))
    x = torch.rand(1, 3, 32, 32)
    features = stem(x)
    assert torch.allclose(tail(features.map, *features.carry), source.eval()(x).map, atol=1e-5)
    assert stem.weight_report.complete
    # And what was saved from a cut backbone, its own part alone, fills such a one again.
    save_file({f"backbone.{n}": v for n, v in stem.state_dict().items()}, tmp_path / "model.safetensors")
    again = build_backbone({"name": "resnet20", "cut": "layer3.0.bn1", "weights": str(tmp_path)})
    assert same(again, stem)
    assert again.weight_report.fraction == 1


class Payload:
    """What a malicious file would hold: unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("ending", ["pt", "ckpt", "safetensors"])
@pytest.mark.parametrize("raw", [True, False])
def test_code_is_refused_and_never_executed(tmp_path, ending, raw):
    proof, path = tmp_path / "proof", tmp_path / f"evil.{ending}"
    content = {"state_dict": filled().network.state_dict(), "callback": Payload(str(proof))}
    if raw:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    backbone = build_backbone(SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match="evil"):
        load_weights(backbone, path)
    assert not proof.exists()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.safetensors", b"\x10\x00\x00\x00"),
        ("cut.pt", b"PK\x03\x04 and nothing"),
        ("empty.pth", b""),
        ("text.bin", b"hello"),
        ("weights.onnx", b"hello"),
    ],
)
def test_damaged_and_unknown_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_weights(build_backbone(SMALL), tmp_path / name)


def test_a_file_without_tensors_by_name(tmp_path):
    for content in ([1, 2], {"epoch": 3}, torch.zeros(3)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match="without tensors by name"):
            load_weights(build_backbone(SMALL), tmp_path / "w.pt")


def test_no_such_source():
    for source, said in [
        ("nowhere/w.pt", "no file, no folder and no weight source"),
        ("package:efficientnet_lite", "package:efficientnet_lite'|did you mean 'efficientnet_lite0'"),
        ("hubb", "did you mean 'hub'"),
    ]:
        with pytest.raises(UserError, match=said):
            build_backbone({**SMALL, "weights": source})


def test_weights_of_another_network_are_refused_with_names_of_both(tmp_path):
    save_file(filled("resnet20").network.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone(SMALL)
    before = backbone.network.stage1.conv1.weight.clone()
    with pytest.raises(UserError, match=r"fit 0.0%.*at least 50%.*file has bn1.*network stage1.conv1.weight"):
        load_weights(backbone, tmp_path / "w.safetensors")
    assert torch.equal(backbone.network.stage1.conv1.weight, before)


def test_minimum_counts_parameters_not_tensors(tmp_path, caplog):
    """conv1 of stage 2 alone is 216 of 344 parameters."""
    state = filled().network.state_dict()
    assert sum(p.numel() for p in filled().parameters()) == 344
    part = {"stage2.conv1.weight": state["stage2.conv1.weight"], "stage1.conv1.weight": torch.zeros(4, 3, 5, 5)}
    save_file(part, tmp_path / "w.safetensors")
    report = load_weights(build_backbone(SMALL), tmp_path / "w.safetensors")
    assert report.fraction == pytest.approx(216 / 344)
    assert report.mismatched == ("stage1.conv1.weight",)
    assert "stage1.norm1.weight" in report.missing
    assert not any("num_batches_tracked" in name for name in report.missing)
    for said in ("1 tensors loaded", "62.8%", "missing (stage1.norm1.weight", "of another shape (stage1.conv1.weight)"):
        assert said in str(report)
    with pytest.raises(UserError, match="at least 70%"):
        load_weights(build_backbone(SMALL), tmp_path / "w.safetensors", minimum=0.7)
    with caplog.at_level(logging.WARNING):
        build_backbone({**SMALL, "weights": str(tmp_path / "w.safetensors")})
    assert "62.8%" in caplog.text


def test_any_module_can_be_filled(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(
        {f"module.{name}": value.detach() for name, value in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert load_weights(target, tmp_path / "w.safetensors").complete
    assert same(source, target)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_rgb_weights_fold_to_other_channels(tmp_path, channels):
    theirs = filled().network.state_dict()
    save_file(theirs, tmp_path / "w.safetensors")
    spec = {**SMALL, "in_channels": channels, "weights": str(tmp_path / "w.safetensors")}
    backbone = build_backbone(spec)
    assert backbone.weight_report.adapted == ("stage1.conv1.weight",)
    weight, given = backbone.network.stage1.conv1.weight, theirs["stage1.conv1.weight"]
    assert weight.shape[1] == channels
    for channel in range(channels):
        expected = given.sum(1) if channels == 1 else given[:, channel % 3] * 3 / channels
        assert torch.allclose(weight[:, channel], expected)


def test_folded_to_grey_gives_what_the_rgb_copy_gave():
    weight, grey = torch.randn(4, 3, 3, 3), torch.rand(2, 1, 8, 8)
    mine = nn.functional.conv2d(grey, fold_input(weight, 1))
    assert torch.allclose(mine, nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight), atol=1e-5)


def test_a_source_of_another_package(monkeypatch):
    state = filled().network.state_dict()
    monkeypatch.setattr(WEIGHT_SOURCES, "_entries", dict(WEIGHT_SOURCES._entries))
    WEIGHT_SOURCES.register("theirs")(lambda module: FoundWeights(state, (0.1,) * 3, (0.2,) * 3))
    backbone = build_backbone({**SMALL, "weights": "package:theirs"})
    assert torch.equal(backbone.network.stage2.conv1.weight, state["stage2.conv1.weight"])
    assert backbone.mean.tolist() == pytest.approx([0.1] * 3)


def test_hub_asks_timm_and_only_then(monkeypatch):
    import timm

    create, asked = timm.create_model, []

    def answer(name, pretrained, **options):
        asked.append((name, pretrained, options["in_chans"]))
        torch.manual_seed(7)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", answer)
    backbone = build_backbone({"name": "timm/resnet10t", "weights": "hub", "in_channels": 1, "cut": "layer2"})
    assert asked == [("resnet10t", False, 1), ("resnet10t", True, 1)]
    assert backbone.weight_report.fraction == 1
    torch.manual_seed(7)
    theirs = create("resnet10t", pretrained=False, num_classes=0, in_chans=1).state_dict()
    assert torch.equal(backbone.network.state_dict()["layer2.0.conv1.weight"], theirs["layer2.0.conv1.weight"])


def test_no_network_is_one_clear_message(monkeypatch):
    def refuse(*args, **options):
        raise OSError("the network is down")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_backbone("timm/resnet10t")
    import timm

    create = timm.create_model

    def offline(name, pretrained, **options):
        return refuse() if pretrained else create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="resnet10t could not be had from the hub: the network is down"):
        build_backbone({"name": "timm/resnet10t", "weights": "hub"})
    with pytest.raises(UserError, match="'hub' is for timm"):
        build_backbone({**SMALL, "weights": "hub"})


def test_a_folder_from_elsewhere_does_not_make_loading_fetch_weights(tmp_path):
    import json

    from vitrarium.models import build, load_model, save_model

    model = build({"backbone": "timm/test_resnet", "evidence": "features", "readout": "linear"}, ["a", "b"], seed=0)
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["spec"]["backbone"] = {"name": "timm/test_resnet", "weights": "hub"}
    path.write_text(json.dumps(config))
    again = load_model(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
