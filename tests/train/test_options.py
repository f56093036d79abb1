"""What a recipe can ask for, and what it is refused."""

from __future__ import annotations

import csv

import pytest
import torch
from safetensors.torch import load_file

import vitrarium as vt
from vitrarium.train.events.base import EVENTS, Event
from vitrarium.train.snapshot import Snapshot
from vitrarium.train.task import rate
from vitrarium.train.terms.base import TERMS, Term

COUNT = {"calls": 0}

if "test_turns_nan" not in TERMS:

    @TERMS.register("test_turns_nan")
    class TurnsNaN(Term):
        def forward(self, step):
            COUNT["calls"] += 1
            return step.output.logits.sum() * (float("nan") if COUNT["calls"] > 8 else 0.0)

    @EVENTS.register("test_count")
    class Count(Event):
        seen: list[tuple[str, int]] = []  # noqa: RUF012 - shared on purpose

        def run(self, moment):
            Count.seen.append((moment.batch is not None, moment.seed))


def metrics(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "options",
    [
        ["train.precision=bf16-mixed"],
        ["train.precision=64-true"],
        ["train.optimiser=sgd", "train.lr=0.01", "train.schedule=constant", "train.warmup=0"],
        ["train.optimiser=adam", "train.clip=1.0", "train.accumulate=3"],
        ["train.tensorboard=true"],
        ["recipe.joint.do.kind=random", "recipe.joint.do.per=batch"],
        ["terms.concepts={reduction: sum, imbalance: pos_weight}", "loss.concepts=0.1"],
        ["data.missing_concepts=0.5", "data.imbalance=3"],
    ],
    ids=lambda o: o[0],
)
def test_options_train(options, tiny, tmp_path):
    run = vt.fit("model=cbm", *tiny, *options, out=tmp_path / "run")
    assert all(torch.isfinite(p).all() for p in vt.load(run.folder).parameters())
    if "train.tensorboard=true" in options:
        assert list((tmp_path / "run" / "tensorboard").rglob("events.out*"))


def test_terms_are_logged_by_name(tiny, tmp_path):
    run = vt.fit("model=cbm", *tiny, out=tmp_path / "run")
    names = {r["name"] for r in metrics(run.folder)}
    assert {"train/loss/cross_entropy", "train/loss/concepts", "val/accuracy", "val/concept_accuracy"} <= names


def test_the_best_epoch_is_kept_and_patience_stops(tiny, tmp_path):
    run = vt.fit(
        "model=blackbox", *tiny, "train.epochs=12", "train.lr=1e-9", "recipe.joint.patience=2", out=tmp_path / "run"
    )
    rows = [r for r in metrics(run.folder) if r["name"] == "val/accuracy"]
    # Nothing is learnt at this rate: two epochs after the best, training stops.
    best = max(range(len(rows)), key=lambda e: (float(rows[e]["value"]), -e))
    assert len(rows) == best + 3 < 12


def test_frozen_parts_do_not_move_and_their_norms_do_not_either(tiny, tmp_path):
    first = vt.fit("model=cbm", *tiny, out=tmp_path / "first")
    preset = tmp_path / "head.yaml"
    preset.write_text(
        "defaults: [model/cbm]\nrecipe: {head: {epochs: 2, terms: [cross_entropy], learn: {readout: 1.0}}}\n"
    )
    second = vt.fit(f"model={preset}", *tiny, f"init_from={first.folder}", out=tmp_path / "second")
    before, after = (load_file(r.folder / "model" / "model.safetensors") for r in (first, second))
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == name.startswith("readout."), name


@pytest.mark.parametrize("part", ["backbone", "evidence", "readout"])
def test_the_joint_loss_teaches_every_part(part, tiny, tmp_path):
    from vitrarium.data.module import DataModule
    from vitrarium.train.terms.base import Step, build_terms
    from vitrarium.training import build_model

    config = vt.runs.to_plain(vt.compose(["model=cbm", *tiny]))
    source = vt.runs.build_source_of(config)
    model = build_model(config, source)
    batch = next(iter(DataModule(source, batch_size=8, cache_folder="memory").loader("train")))
    step = Step(model, batch, model(batch.image))
    for label, term in build_terms(config["loss"], {}, source).items():
        gradients = torch.autograd.grad(term(step), model.parts()[part], retain_graph=True, allow_unused=True)
        reached = any(g is not None and g.abs().sum() > 0 for g in gradients)
        assert reached == (label == "cross_entropy" or part != "readout"), (label, part)


def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(tiny, tmp_path):
    COUNT["calls"] = 0
    settings = ["model=cbm", *tiny, "loss.test_turns_nan=1", "train.save_seconds=1000"]
    settings.append("recipe.joint.terms=[cross_entropy, concepts, test_turns_nan]")
    with pytest.raises(vt.UserError, match=r"'test_turns_nan' became nan in stage 'joint', epoch 2"):
        vt.fit(*settings, out=tmp_path / "run")
    snapshot = Snapshot.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (snapshot.epoch, snapshot.batch) == (1, 0)
    assert all(torch.isfinite(t).all() for n, t in snapshot.model.items() if t.is_floating_point())
    COUNT["calls"] = -100
    assert vt.fit(*settings, out=tmp_path / "run", resume=True).finished


def test_a_full_disk_while_saving_keeps_the_older_snapshot(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    Snapshot(stage=1, epoch=3).save(path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(vt.UserError, match="No space left"):
        Snapshot(stage=1, epoch=4).save(path)
    assert Snapshot.load(path).epoch == 3
    assert list(tmp_path.iterdir()) == [path]


def test_events_run_when_they_are_due(tiny, tmp_path):
    from vitrarium.train.events.base import EVENTS

    count = EVENTS.get("test_count")
    count.seen.clear()
    events = "{a: {name: test_count, when: start}, b: {name: test_count, when: step, every: 4}, " \
        "c: {name: test_count, when: epoch}, d: {name: test_count, when: end}}"  # fmt: skip
    vt.fit("model=blackbox", *tiny, f"recipe.joint.events={events}", out=tmp_path / "run")
    # 12 steps in 2 epochs: at the start, after steps 4, 8 and 12, after each epoch, at the end.
    assert [with_batch for with_batch, _ in count.seen] == [False, True, False, True, True, False, False]
    assert len({seed for _, seed in count.seen}) == len(count.seen)


def test_the_schedule():
    factors = [rate(s, 100, 10, "cosine") for s in range(101)]
    assert factors[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)
    assert rate(50, 100, 10, "constant") == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["recipe.joint.terms=[cross_entropie]"], "did you mean 'cross_entropy'"),
        (["recipe.joint.select=[acuracy]"], "did you mean 'accuracy'"),
        (["recipe.joint.learn={backbon: 1}"], "did you mean 'backbone'"),
        (["recipe.joint.events={calibrat: {}}"], "did you mean 'calibrate'"),
        (["recipe.joint.events={calibrate: {when: sometimes}}"], "cannot run at 'sometimes'"),
        (["recipe.joint.events={calibrate: {low: 0.9, high: 0.1}}"], "quantiles"),
        (["recipe.joint.do.probability=2", "recipe.joint.do.kind=random"], "from 0 to 1"),
        (["model=blackbox", "recipe.joint.do.kind=truth"], "no concept as truth"),
        (["model=blackbox", "recipe.joint.select=[concept_accuracy]"], "cannot select by 'concept_accuracy'"),
        (["recipe.joint.terms=[]"], "no loss terms"),
        (["model=cbm_sequential", "model.readout.name=mlp"], "needs a linear readout"),
        (["model=cbm_logit", "recipe.joint.do.kind=random"], "event 'calibrate' in the recipe"),
        (["model=cbm_independent", "model.evidence.activation=logit"], "event 'calibrate' in the recipe"),
        (["init_from=nowhere"], "no run or model"),
    ],
)
def test_refusals_come_before_training(overrides, said, tiny, tmp_path):
    with pytest.raises(vt.UserError, match=said):
        vt.fit("model=cbm", *tiny, *overrides, out=tmp_path / "run")
