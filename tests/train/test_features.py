"""A frozen backbone runs once: what is kept, under which key, and that training on it is training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.data import build_source
from vitrarium.data.augmentation import Augmentation
from vitrarium.data.batch import collate
from vitrarium.data.module import DataModule
from vitrarium.models import build
from vitrarium.models.backbones.base import Backbone
from vitrarium.train.features import SEED, keep_features
from vitrarium.train.terms.base import TERMS, Term

FROZEN = ("train.freeze=[backbone]", "train.features=1")
PLAIN = ("augment.geometry=[]",)

if "test_wants_gradient" not in TERMS:

    @TERMS.register("test_wants_gradient")
    class WantsGradient(Term):
        needs = frozenset({"input_gradient"})

        def forward(self, step):
            return step.input_gradient().square().mean()

    @TERMS.register("test_wants_map")
    class WantsMap(Term):
        needs = frozenset({"human_map"})

        def forward(self, step):
            return step.batch.human_map.mean()

    @TERMS.register("test_wants_unit_maps")
    class WantsUnitMaps(Term):
        needs = frozenset({"maps"})
        seen: list[tuple[int, ...]] = []  # noqa: RUF012 - shared on purpose

        def forward(self, step):
            self.seen.append(tuple(step.output.evidence.maps.shape))
            return step.output.evidence.maps.square().mean()


@pytest.fixture
def source():
    return build_source({"name": "flowers", "size": 32, "train": 20, "val": 8, "test": 4})


def module_of(source, folder, **options):
    return DataModule(source, batch_size=8, cache_folder=folder, **options)


def model_of(source, seed=0, evidence="concepts", backbone=None):
    spec = {"backbone": backbone or {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": "linear"}
    return build(spec, source.class_names, source.concepts, seed=seed)


def counting(monkeypatch, model):
    """How many images went through the backbone."""
    seen, forward = [], type(model.backbone).forward

    def count(self, x):
        seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(type(model.backbone), "forward", count)
    return seen


class TestWhatIsKept:
    @pytest.mark.parametrize("pooled", [True, False])
    def test_the_first_appearance_is_the_image_and_others_are_augmented(self, source, tmp_path, pooled):
        augment = {"geometry": ["flip_horizontal", {"name": "shift", "pixels": 4}]}
        data, model = module_of(source, tmp_path, augment=augment), model_of(source).eval()
        keep_features(model, data, 3, pooled)
        loader = data.loader("train", augment=True, batch_size=20)
        for epoch in range(5):
            loader.batch_sampler.set_epoch(epoch)
            (batch,) = loader
            appearance, split = epoch % 3, source.splits["train"]
            samples = [split.sample(i) for i in range(20)]
            if appearance:
                moved = Augmentation.from_config(augment, SEED)
                samples = [moved(s, appearance, i)[0] for i, s in enumerate(samples)]
            with torch.no_grad():
                expected = model.backbone(collate([[s] for s in samples]).image).map
            expected = expected.mean((2, 3), keepdim=True) if pooled else expected
            torch.testing.assert_close(batch.features[0], expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(batch.label, torch.as_tensor(split.labels))
            assert torch.equal(batch.concepts, torch.as_tensor(split.truth))
            assert batch.image.shape == (20, 3, 0, 0)

    def test_what_a_cut_carries_is_kept_with_the_map(self, source, tmp_path):
        backbone = {"name": "resnet20", "cut": "layer2.0.bn1"}
        data, model = module_of(source, tmp_path), model_of(source, evidence="features", backbone=backbone).eval()
        keep_features(model, data, 1, False)
        (batch,) = data.loader("val", batch_size=8)
        (images,) = module_of(source, tmp_path).loader("val", batch_size=8)
        with torch.no_grad():
            whole = model.backbone(images.image)
        assert len(batch.features) == 1 + len(whole.carry) > 1
        for kept, expected in zip(batch.features, (whole.map, *whole.carry), strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)

    def test_the_backbone_runs_once_for_all_runs(self, source, tmp_path, monkeypatch):
        model = model_of(source)
        seen = counting(monkeypatch, model)
        keep_features(model, module_of(source, tmp_path), 1, True)
        # And one image of noise, which is part of the key.
        assert sum(seen) == 20 + 8 + 1
        again = module_of(source, tmp_path)
        keep_features(model_of(source, evidence="features"), again, 1, True)
        assert sum(seen) == 20 + 8 + 2
        assert str(tmp_path) in again.describe()

    @pytest.mark.parametrize("change", ["weights", "code", "data", "size", "augment", "standardisation", "pooled"])
    def test_whatever_decides_the_features_is_in_the_key(self, source, tmp_path, monkeypatch, change):
        augment = {"geometry": ["flip_horizontal"]}
        model, data = model_of(source), module_of(source, tmp_path, augment=augment)
        keep_features(model, data, 2, True)
        seen = counting(monkeypatch, model)
        if change == "weights":
            with torch.no_grad():
                next(model.backbone.parameters()).view(-1)[0] += 1e-3
        elif change == "standardisation":
            model.backbone.mean += 1e-3
        elif change == "code":
            before = model.backbone.network.forward
            monkeypatch.setattr(model.backbone.network, "forward", lambda x: before(x).square())
        elif change == "augment":
            augment = {"geometry": ["rotate90"]}
        elif change in ("data", "size"):
            options = {"size": 40} if change == "size" else {"size": 32, "difficulty": 0.1}
            source = build_source({"name": "flowers", "train": 20, "val": 8, "test": 4, **options})
        keep_features(model, module_of(source, tmp_path, augment=augment), 2, change != "pooled")
        assert sum(seen) >= 2 * 20

    def test_modes_and_place_of_the_backbone_are_left_as_they_were(self, source, tmp_path):
        model = model_of(source).train()
        before = copy.deepcopy(model.state_dict())
        keep_features(model, module_of(source, tmp_path), 1, True)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_more_than_the_limit_is_refused_and_nothing_is_left(self, source, tmp_path):
        data = module_of(source, tmp_path / "cache", cache_limit_gb=1e-6)
        with pytest.raises(vt.UserError, match=r"take .* GiB, more than the limit .* train.features"):
            keep_features(model_of(source), data, 1, False)
        assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


class TestTraining:
    def test_it_learns_what_it_learns_from_images(self, tiny, tmp_path):
        """The same order, no augmentation: kept features must train the same readout as a backbone that runs."""
        settings = [*tiny, *PLAIN, "train.freeze=[backbone]"]
        slow = vt.fit("model=cbm", *settings, out=tmp_path / "slow")
        fast = vt.fit("model=cbm", *settings, "train.features=1", out=tmp_path / "fast")
        a, b = (load_file(run.folder / "model" / "model.safetensors") for run in (slow, fast))
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)

    def test_the_backbone_stays_as_it_was(self, tiny, tmp_path):
        run = vt.fit("model=cbm", *tiny, *FROZEN, out=tmp_path / "run")
        fresh = build(
            {"backbone": run.config["backbone"], **{p: run.config["model"][p] for p in ("evidence", "readout")}},
            run.source.class_names, run.source.concepts, seed=0,
        )  # fmt: skip
        trained = run.model
        for (name, a), b in zip(
            trained.backbone.state_dict().items(), fresh.backbone.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name
        assert not torch.equal(trained.readout.linear.weight, fresh.readout.linear.weight)

    @pytest.mark.parametrize("preset", vt.names("presets"))
    def test_every_preset_trains_on_features_and_is_measured(self, preset, tiny, tmp_path):
        settings = [f"model={preset}", *tiny, "train=frozen", *tiny]
        if any(stage["views"] > 1 for stage in vt.compose(settings).recipe.values()):
            # Two appearances of one image are what it learns from: one row of features cannot stand for them.
            with pytest.raises(vt.UserError, match="views of each image"):
                vt.fit(*settings, out=tmp_path / "run")
            return
        if preset.startswith("concept_whitening"):
            # An axis for each concept needs more channels than a tiny network has.
            settings.append("backbone.widths=[8,32]")
        if preset in ("antehoc", "senn"):
            # They draw the image again from what they have learnt.
            with pytest.raises(vt.UserError, match="needs pixels"):
                vt.fit(*settings, out=tmp_path / "run")
            return
        run = vt.fit(*settings, out=tmp_path / "run")
        assert 0 <= vt.evaluate(run).value("accuracy") <= 1

    @pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
    def test_other_precisions(self, precision, tiny, tmp_path):
        run = vt.fit("model=cbm", *tiny, *FROZEN, f"train.precision={precision}", out=tmp_path / "run")
        assert all(torch.isfinite(p).all() for p in run.model.parameters())

    def test_a_term_that_reads_unit_maps_gets_whole_maps(self, tiny, tmp_path):
        WantsUnitMaps.seen.clear()
        more = ["loss.test_wants_unit_maps=1.0", "recipe.joint.terms=[cross_entropy,concepts,test_wants_unit_maps]"]
        vt.fit("model=cbm", *tiny, *FROZEN, *more, out=tmp_path / "run")
        assert {shape[2:] for shape in WantsUnitMaps.seen} == {(8, 8)}

    def test_interrupted_and_resumed_it_is_the_same(self, tiny, tmp_path, monkeypatch):
        from vitrarium.train.callbacks import Keeper

        settings = ["model=cbm", *tiny, "train.freeze=[backbone]", "train.features=2", "train.save_seconds=0"]
        whole = vt.fit(*settings, out=tmp_path / "whole")
        ended, left = Keeper.on_train_batch_end, [9]

        class Gone(BaseException):
            pass

        def dies(self, *given):
            ended(self, *given)
            left[0] -= 1
            if left[0] == 0:
                raise Gone

        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "on_train_batch_end", dies)
            with pytest.raises(Gone):
                vt.fit(*settings, out=tmp_path / "run")
        vt.fit(*settings, out=tmp_path / "run", resume=True)
        a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run"))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert whole.finished


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.features=1"], "stage 'joint' learns it"),
        (["train.freeze=[backbon]"], "did you mean 'backbone'"),
        (["train.freeze=[backbone,evidence,readout]"], "which train.freeze freezes"),
        ([*FROZEN, "recipe.joint.views=2"], "asks for 2 views"),
        ([*FROZEN, "loss.test_wants_gradient=1", "recipe.joint.terms=[test_wants_gradient]"], "set train.features=0"),
        ([*FROZEN, "loss.test_wants_map=1", "recipe.joint.terms=[test_wants_map]"], "set train.features=0"),
        (["train.features=-1", "train.freeze=[backbone]"], "train.features is -1"),
    ],
)
def test_refusals_come_before_anything_runs(settings, said, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "standardise", lambda *_: pytest.fail("the backbone ran"))
    with pytest.raises(vt.UserError, match=said.replace("[", r"\[")):
        vt.fit("model=cbm", *tiny, *settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("evidence", ["features", "concepts", {"name": "concepts", "side": 3}])
def test_layers_that_say_so_read_the_mean_alone(source, evidence):
    model = model_of(source, evidence=evidence).double().eval()
    features = model.backbone(torch.rand(3, 3, 32, 32, dtype=torch.float64))
    assert model.evidence.reads_mean
    pooled = type(features)(features.map.mean((2, 3), keepdim=True))
    whole, small = model.observe(features), model.observe(pooled)
    np.testing.assert_allclose(small.vector.detach().numpy(), whole.vector.detach().numpy(), rtol=1e-12)
