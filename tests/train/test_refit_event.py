"""The event that refits a readout: on validation better than before, sparse where it may be, pruned units silent."""

from __future__ import annotations

import pytest
import torch

import vitrarium as vt
from vitrarium.configs.errors import UserError
from vitrarium.data.module import DataModule
from vitrarium.models import build, load_model, save_model
from vitrarium.models.readouts.refit import refit
from vitrarium.runs import build_source_of, to_plain
from vitrarium.train.events.base import EVENTS, Moment
from vitrarium.train.events.refit_readout import problem_of
from vitrarium.train.events.vectors import readout_vectors
from vitrarium.train.interventions import TrainingDo

STRENGTHS = {"l1": (1e-4, 1e-2), "l2": (1e-3, 1e-2)}


@pytest.fixture(scope="module")
def data(tiny):
    config = to_plain(vt.compose(["model=cbm", *tiny, "data.train=120", "data.val=60"]))
    source = build_source_of(config)
    return source, DataModule(source, batch_size=32, cache_folder="memory")


def moment(data, readout="class_connected", evidence=None, log=None):
    source, module = data
    spec = {
        "backbone": {"name": "convnet", "widths": (8, 8)},
        "evidence": evidence or {"name": "prototypes", "per_class": 2},
        "readout": readout,
    }
    model = build(spec, source.class_names, source.concepts, seed=0)
    here = Moment(model, source, module.loader, TrainingDo(), seed=0)
    if log is not None:
        here.log = log.__setitem__
    return here


def test_it_solves_the_problem_with_the_strengths_it_logs(data):
    log = {}
    here = moment(data, log=log)
    here.model.train()
    start = problem_of(here.model.evidence, here.model.readout)
    EVENTS.build({"name": "refit_readout", **STRENGTHS}).run(here)
    assert here.model.training
    said = {name.removeprefix("refit_readout/"): value for name, value in log.items()}
    weight = here.model.readout.linear.weight.detach()
    alone = refit(*readout_vectors(here, "train"), start, said["l1"], said["l2"])
    torch.testing.assert_close(weight.double(), alone.weight, atol=1e-4, rtol=0)
    vectors, labels = readout_vectors(here, "val")
    scores = vectors.double() @ weight.double().T
    assert said["val_accuracy_after"] == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    loss = torch.nn.functional.cross_entropy(scores, labels)
    assert said["val_log_loss_after"] == pytest.approx(float(loss), rel=1e-4)
    assert said["val_log_loss_after"] < said["val_log_loss_before"]
    foreign = weight[~here.model.readout.mine]
    assert said["zeros"] == pytest.approx(float((foreign == 0).float().mean()))


def test_pruned_units_stay_silent_and_bounds_hold(data, tmp_path):
    here = moment(data)
    model = here.model
    model.evidence.alive[[0, 5]] = False
    model.readout.upper[3, 7] = 0.0
    model.readout.lower[2, 4] = 1.5
    EVENTS.build({"name": "refit_readout", **STRENGTHS}).run(here)
    weight = model.readout.linear.weight.detach()
    assert (weight[:, [0, 5]] == 0).all()
    assert float(weight[3, 7]) <= 0
    assert float(weight[2, 4]) >= 1.5
    # Bounds travel with the model.
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model").readout
    assert float(loaded.lower[2, 4]) == 1.5
    assert float(loaded.upper[3, 7]) == 0.0


def test_it_fits_any_linear_readout(data):
    for readout in ("linear", {"name": "linear", "bias": False}):
        here = moment(data, readout, {"name": "concepts"})
        EVENTS.build({"name": "refit_readout", "l1": (0.1,), "l2": (1e-3,), "errors": 100.0}).run(here)
        weight = here.model.readout.linear.weight
        assert (weight == 0).float().mean() > 0.5
    here = moment(data, {"name": "nonnegative", "scale": "plain"}, {"name": "softmax_channels"})
    EVENTS.build({"name": "refit_readout", **STRENGTHS}).run(here)
    assert (here.model.readout.effective_weight >= 0).all()
    assert torch.equal(here.model.readout.effective_weight, here.model.readout.weight)


def test_refusals(data):
    event = EVENTS.build("refit_readout")
    for readout, evidence in (("mlp", {"name": "concepts"}), ("nonnegative", {"name": "softmax_channels"})):
        with pytest.raises(UserError, match="needs a linear readout"):
            event.check(moment(data, readout, evidence).model)
    for wrong in ({"l2": ()}, {"l1": (-1.0,)}, {"errors": -1.0}, {"iterations": 0}):
        with pytest.raises(UserError, match="refit_readout"):
            EVENTS.build({"name": "refit_readout", **wrong})
