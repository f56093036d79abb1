"""Events against numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.module import DataModule
from vitrarium.models import build
from vitrarium.runs import build_source_of, to_plain
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.events.fit_readout import _all_classes
from vitrarium.train.interventions import TrainingDo


@pytest.fixture(scope="module")
def data(tiny):
    config = to_plain(vt.compose(["model=cbm", *tiny, "data.train=120", "data.val=60"]))
    source = build_source_of(config)
    return source, DataModule(source, batch_size=32, cache_folder="memory")


def moment(data, evidence, readout="linear", **do):
    source, module = data
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": readout}
    model = build(spec, source.class_names, source.concepts, seed=0)
    return Moment(model, source, module.loader, TrainingDo(**do), seed=0)


def test_calibrate_takes_training_quantiles(data):
    here = moment(data, {"name": "concepts", "activation": "logit"})
    here.model.train()
    EVENTS.build({"name": "calibrate", "low": 0.1, "high": 0.8}).run(here)
    assert here.model.training
    here.model.eval()
    with torch.no_grad():
        scores = np.concatenate([here.model(b.image).evidence.activations.numpy() for b in data[1].loader("train")])
    np.testing.assert_allclose(here.model.evidence.absent.numpy(), np.quantile(scores, 0.1, axis=0), rtol=1e-4)
    np.testing.assert_allclose(here.model.evidence.present.numpy(), np.quantile(scores, 0.8, axis=0), rtol=1e-4)
    assert here.model.evidence.units.read({"petal_colour": "red"}).truth


@pytest.mark.parametrize(
    ("event", "evidence"),
    [
        ({"name": "calibrate"}, {"name": "concepts", "activation": "logit"}),
        ({"name": "fit_readout", "strengths": (1.0,)}, {"name": "concepts"}),
    ],
    ids=["calibrate", "fit_readout"],
)
def test_an_event_amid_training_leaves_a_frozen_part_frozen(data, event, evidence):
    here = moment(data, evidence)
    here.model.train()
    here.model.backbone.eval()  # as a stage does that does not learn it
    before = {name: module.training for name, module in here.model.named_modules()}
    EVENTS.build(event).run(here)
    assert {name: module.training for name, module in here.model.named_modules()} == before


def test_an_independent_readout_is_a_regression_on_the_truth(data):
    here = moment(data, {"name": "concepts"}, kind="truth")
    EVENTS.build({"name": "fit_readout", "strengths": (1.0,)}).run(here)
    train = data[0].splits["train"]
    expected = LogisticRegression(C=1.0, max_iter=2000).fit(train.truth.astype(np.float64), train.labels)
    weight = here.model.readout.linear.weight.detach().numpy()
    assert np.corrcoef(weight.ravel(), expected.coef_.ravel())[0, 1] > 0.9999


def test_the_strength_is_chosen_by_validation_log_loss(data):
    here = moment(data, {"name": "concepts"})
    event = EVENTS.build({"name": "fit_readout", "strengths": (0.001, 1.0, 100.0)})
    event.run(here)
    best = min(event.report, key=lambda s: event.report[s]["log_loss"])
    here.model.eval()
    with torch.no_grad():
        batches = list(data[1].loader("val"))
        logits = torch.cat([here.model(b.image).logits for b in batches]).double()
        labels = torch.cat([b.label for b in batches])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(event.report[best]["log_loss"], rel=1e-4)


def test_two_classes_and_classes_that_training_never_saw():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = np.where(x[:, 0] > 0, 3, 1)
    fitted = LogisticRegression().fit(x, y)
    weight, bias = _all_classes(fitted, 4)
    logits = x @ weight.T + bias
    assert np.array_equal(logits.argmax(1), fitted.predict(x))
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose((p / p.sum(1, keepdims=True))[:, [1, 3]], fitted.predict_proba(x), atol=1e-9)


def test_random_interventions_set_whole_groups_at_their_rate(data):
    source = data[0]
    model = moment(data, {"name": "concepts"}).model
    batch = next(iter(DataModule(source, batch_size=120, cache_folder="memory").loader("train")))
    generator = torch.Generator().manual_seed(1)
    do = TrainingDo("random", 0.25)
    masks = torch.cat([do(model, batch, generator).mask for _ in range(20)])
    for group in source.concepts.groups:
        members = masks[:, list(group.members)]
        assert (members == members[:, :1]).all()
        assert members[:, 0].float().mean() == pytest.approx(0.25, abs=0.03)
    one = TrainingDo("random", 0.5, "batch")(model, batch, generator)
    assert (one.mask == one.mask[:1]).all()
    torch.testing.assert_close(one.values, batch.concepts)


def test_refusals(data):
    with pytest.raises(UserError, match="needs a linear readout"):
        EVENTS.build("fit_readout").run(moment(data, {"name": "concepts"}, "mlp"))
    with pytest.raises(UserError, match="strengths"):
        EVENTS.build({"name": "fit_readout", "strengths": (0.0,)})
