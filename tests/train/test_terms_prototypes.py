"""Terms on prototypes against plain loops in float64, with the released mistakes as tests."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.batch import Batch
from vitrarium.models import build
from vitrarium.train.checks import check_recipe
from vitrarium.train.terms.base import Step, build_terms
from vitrarium.train.terms.marked_patches import marked_likeness, places_in
from vitrarium.train.terms.prototypes import (
    class_bases,
    nearest_distances,
    off_class_l1,
    orthogonality,
    subspace_separation,
)

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def source():
    return build_source({"name": "flowers", "train": 24, "val": 8, "test": 8, "size": 32})


def model_of(names=CLASSES, readout="class_connected", **evidence):
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": {"name": "prototypes", "per_class": 3}}
    spec["evidence"] |= evidence
    return build({**spec, "readout": readout}, names, seed=0).double()


def step_of(model, labels=(0, 1, 2, 1), seed=0):
    image = torch.rand(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = Batch(image, torch.tensor(labels))
    return Step(model, batch, model.train().on(batch))


def term_of(name, source, **options):
    return build_terms({name: 1.0}, {name: options} if options else {}, source)[name].double()


def distances_by_hand(model, step, kind):
    """(B, P) of the nearest patch, in loops."""
    latent = model.evidence.embed(model.backbone(step.batch.image))
    found = torch.zeros(len(step.batch), len(model.evidence.class_of), dtype=torch.float64)
    for b, p in itertools.product(*map(range, found.shape)):
        z, v = latent[b].flatten(1).T, model.evidence.vectors[p].flatten()
        if kind in ("cosine", "dot"):
            away = 1 - (z @ v) / (z.norm(dim=1) * v.norm())
        else:
            away = (z - v).square().sum(1)
        found[b, p] = away.min()
    return found


@pytest.mark.parametrize("kind", ["cosine", "dot", "log_l2", "exp_l2"])
def test_cluster_and_separation_against_loops(kind, source):
    model = model_of(similarity=kind, readout="linear")
    model.evidence.alive[[0, 5]] = False
    # Statistics of norms would move with every pass.
    model.backbone.eval()
    batch = Batch(torch.rand(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 1]))
    step = Step(model, batch, model.on(batch))
    distance = distances_by_hand(model, step, kind).detach()
    owner, alive = model.evidence.class_of.tolist(), model.evidence.alive.tolist()
    own, other = [], []
    for b, y in enumerate(batch.label.tolist()):
        own.append(min(float(distance[b, p]) for p in range(9) if owner[p] == y and alive[p]))
        other.append(min(float(distance[b, p]) for p in range(9) if owner[p] != y and alive[p]))
    assert float(term_of("cluster", source)(step).detach()) == pytest.approx(sum(own) / 4, rel=1e-6)
    assert float(term_of("separation", source)(step).detach()) == pytest.approx(-sum(other) / 4, rel=1e-6)


def test_masks_are_filled_and_not_multiplied():
    """With distances below 0 a product with the mask would let a 0 of another class win (a known bug)."""
    distance = torch.tensor([[0.9, -0.5, 0.2], [-0.9, -0.8, -0.7]])
    chosen = torch.tensor([[True, False, True], [False, False, True]])
    nearest, found = nearest_distances(distance, chosen)
    torch.testing.assert_close(nearest, torch.tensor([0.2, -0.7]))
    assert found.all()
    maps = torch.tensor([-0.9, -0.5, -0.7, -0.1]).view(1, 2, 1, 2)
    likeness = marked_likeness(maps, torch.tensor([[[True, False]]]), torch.tensor([[True, True]]))
    assert float(likeness) == pytest.approx((-0.9 - 0.7) / 2)


def test_an_image_whose_class_has_no_living_prototype_is_left_out(source):
    model = model_of()
    model.evidence.alive[:3] = False
    step = step_of(model)
    value = term_of("cluster", source)(step)
    distance = step.output.evidence.state["distance"]
    rows = [distance[1, 3:6].min(), distance[2, 6:].min(), distance[3, 3:6].min()]
    assert float(value.detach()) == pytest.approx(float(sum(rows)) / 3)
    model.evidence.alive[:] = False
    gone = term_of("cluster", source)(step)
    gone.backward()
    assert float(gone.detach()) == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


def test_slots_of_a_pool_make_prototypes_a_class_s_own(source):
    model = build(
        {
            "backbone": {"name": "convnet", "widths": (8, 8)},
            "evidence": {"name": "prototype_pool", "size": 7, "slots": 2},
            "readout": "class_connected",
        },
        CLASSES,
    ).double()
    term_of("cluster", source).check(model)
    step = step_of(model)
    distance, owners = step.output.evidence.state["distance"], model.evidence.owners()
    own = [min(distance[b, p] for p in range(7) if owners[p, y]) for b, y in enumerate((0, 1, 2, 1))]
    assert float(term_of("cluster", source)(step).detach()) == pytest.approx(float(sum(own)) / 4)
    with pytest.raises(UserError, match="no vectors that belong to classes"):
        term_of("orthogonality", source).check(model)


@pytest.mark.parametrize("name", ["cluster", "separation"])
@pytest.mark.parametrize("kind", ["cosine", "log_l2", "dot"])
def test_gradients_reach_backbone_and_prototypes(name, kind, source):
    model = model_of(similarity=kind, readout="linear")
    term_of(name, source)(step_of(model)).backward()
    for part in (model.backbone, model.evidence):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert model.evidence.prototypes.grad.abs().sum() > 0


def test_a_step_downhill_clusters_and_separates(source):
    """The sign: a weight above 0 on both brings own prototypes nearer and pushes others away."""
    model = model_of()
    model.backbone.eval()
    batch = Batch(torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]))
    for name in ("cluster", "separation"):
        before = model.on(batch).evidence.state["distance"].detach()
        step = Step(model, batch, model.on(batch))
        (slope,) = torch.autograd.grad(term_of(name, source)(step), model.evidence.prototypes)
        with torch.no_grad():
            model.evidence.prototypes -= 0.1 * slope
        after = model.on(batch).evidence.state["distance"].detach()
        mine = model.evidence.owners().T[batch.label]
        chosen = mine if name == "cluster" else ~mine
        moved = (nearest_distances(after, chosen)[0] - nearest_distances(before, chosen)[0]).mean()
        assert (moved < 0) == (name == "cluster")


def test_readout_l1_counts_foreign_living_weights_only(source):
    model = model_of()
    with torch.no_grad():
        model.readout.linear.weight.copy_(torch.randn(3, 9, dtype=torch.float64))
    model.evidence.alive[4] = False
    value = term_of("readout_l1", source)(step_of(model))
    weight, expected = model.readout.linear.weight, 0.0
    for c, e in itertools.product(range(3), range(9)):
        if e // 3 != c and e != 4:
            expected += abs(float(weight[c, e]))
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert (weight.grad != 0).sum() == 16
    assert off_class_l1(torch.full((2, 2), float("inf")), torch.ones(2, 2, dtype=torch.bool)) == 0


@pytest.mark.parametrize("norm", ["l1", "squared"])
@pytest.mark.parametrize("rows", ["prototype", "part"])
def test_orthogonality_against_loops(norm, rows, source):
    """Prototypes lie class by class, or in any order: who owns them says which B they are a row of.

    The released deformable ProtoPNet reshapes (classes x per_class) as (per_class, classes), which mixes classes.
    """
    model = model_of(part=2, similarity="cosine", width=5)
    layer = model.evidence
    layer.class_of.copy_(torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0]))
    layer.alive[[3, 8]] = False
    unit = rows == "part"
    value = term_of("orthogonality", source, norm=norm, rows=rows, unit=unit)(step_of(model))
    expected = 0.0
    for c in range(3):
        members = []
        for p in range(9):
            if layer.class_of[p] == c and layer.alive[p]:
                vector = layer.vectors[p].detach()
                places = [vector[:, i, j] for i in range(2) for j in range(2)] if unit else [vector.reshape(-1)]
                members += [v / v.norm() if unit else v for v in places]
        for i, j in itertools.product(range(len(members)), repeat=2):
            entry = float(members[i] @ members[j]) - (i == j)
            expected += abs(entry) if norm == "l1" else entry**2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)
    value.backward()
    assert layer.prototypes.grad[0].abs().sum() > 0
    assert layer.prototypes.grad[3].abs().sum() == 0


def test_orthonormal_bases_cost_nothing():
    basis = torch.linalg.qr(torch.randn(4, 8, 3, dtype=torch.float64)).Q.transpose(1, 2)
    assert float(orthogonality(basis, torch.ones(4, 3, dtype=torch.bool))) == pytest.approx(0, abs=1e-12)


def test_subspace_separation_against_projectors(source):
    model = model_of(similarity="dot", width=6, readout="linear")
    model.evidence.alive[2] = False
    value = term_of("subspace_separation", source)(step_of(model))
    projectors = []
    for c in range(3):
        rows = [model.evidence.vectors[p].detach().flatten() for p in range(3 * c, 3 * c + 3) if p != 2]
        projectors.append(sum(torch.outer(r, r) for r in rows))
    expected = sum(float((a - b).norm()) for a in projectors for b in projectors)
    assert float(value.detach()) == pytest.approx(-expected / (2 * math.sqrt(2)), rel=1e-9)
    value.backward()
    assert torch.isfinite(model.evidence.prototypes.grad).all()
    assert model.evidence.prototypes.grad[0].abs().sum() > 0
    assert model.evidence.prototypes.grad[2].abs().sum() == 0


def test_equal_subspaces_have_a_finite_gradient():
    """|P_i - P_j| has no slope at 0: no NaN may come of it, whichever basis spans the subspace."""
    one = torch.linalg.qr(torch.randn(8, 3)).Q.T
    turned = torch.linalg.qr(torch.randn(3, 3)).Q @ one
    basis = torch.stack([one, turned, torch.linalg.qr(torch.randn(8, 3)).Q.T]).requires_grad_()
    value = subspace_separation(basis)
    value.backward()
    assert torch.isfinite(basis.grad).all()
    assert basis.grad.abs().sum() > 0
    assert float(subspace_separation(basis[:2]).detach()) == 0


def test_a_class_without_prototypes_is_no_subspace(source):
    model = model_of(readout="linear")
    model.evidence.alive[3:6] = False
    basis, living = class_bases(model)
    assert living.sum(1).tolist() == [3, 0, 3]
    pair = basis[[0, 2]]
    value = term_of("subspace_separation", source)(step_of(model))
    assert float(value.detach()) == pytest.approx(float(subspace_separation(pair)))


def write_marks(path, *lines, header="image,x,y,class,kind"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", ["forbid", "remember"])
def test_marked_patches_against_loops(kind, source, tmp_path):
    names = source.class_names
    marks = write_marks(
        tmp_path / "marks.csv", f"3,5,13,{names[0]},{kind}", f"5,30,2,,{kind}",
        f"1,1,1,,{'remember' if kind == 'forbid' else 'forbid'}",
    )  # fmt: skip
    model = model_of(names, per_class=2, similarity="cosine")
    model.evidence.alive[1] = False
    term = term_of(f"{kind}_patches", source, marks=marks)
    value = term(step_of(model, labels=(0, 1)))
    split, expected = source.splits["train"], []
    model.eval()
    for index, x, y, label in ((3, 5, 13, 0), (5, 30, 2, int(split.labels[5]))):
        pixels = torch.from_numpy(split.sample(index).image).permute(2, 0, 1).double()[None] / 255
        maps = model.evidence.similarity(model.evidence.embed(model.backbone(pixels)))[0]
        size = maps.shape[-1]
        row, column = int(y / 32 * size), int(x / 32 * size)
        own = [p for p in (2 * label, 2 * label + 1) if p != 1]
        expected.append(sum(float(maps[p, row, column]) for p in own) / len(own))
    sign = 1 if kind == "forbid" else -1
    assert float(value.detach()) == pytest.approx(sign * sum(expected) / 2, rel=1e-5)


def test_marked_patches_teach_without_touching_norms(source, tmp_path):
    marks = write_marks(tmp_path / "marks.csv", "3,4,12,,forbid", "7,4,12,,forbid", "9,4,12,,forbid")
    model = model_of(source.class_names, per_class=2)
    step = step_of(model, labels=(0, 1))
    model.backbone.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    term = term_of("forbid_patches", source, marks=marks, images=2)
    term(step).backward()
    assert {name: m.training for name, m in model.named_modules()} == modes
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert model.evidence.prototypes.grad.abs().sum() > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    # Images come in turn, and where the turn is goes on after resuming.
    second = term_of("forbid_patches", source, marks=marks, images=2)
    second.load_state_dict(term.state_dict())
    assert int(second.turn) == 2
    assert torch.equal(second(step), term(step))


def test_boxes_and_points_find_their_places():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5], [0.6, 0.9, 0.6, 0.9]])
    places = places_in(box, 4, 4)
    assert places[0].all()
    assert places[1].nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert places[2].nonzero().tolist() == [[3, 2]]
    # A part of 2 x 2 places of a 4 x 4 map has its middle where four places meet.
    assert places_in(torch.tensor([[0.2, 0.2, 0.3, 0.3]]), 3, 3, part=2)[0].nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("evidence", "readout", "terms", "said"),
    [
        ({"per_class": 0, "shared": 4}, "linear", ["cluster"], "belongs to all classes"),
        ({"per_class": 0, "shared": 4}, "linear", ["orthogonality"], "needs owned"),
        ({}, "linear", ["readout_l1"], "weights belong to classes"),
        ({"name": "features"}, "linear", ["separation"], "needs prototypes"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(evidence, readout, terms, said, source):
    spec = {"name": "prototypes", **evidence}
    if spec["name"] == "features":
        spec = {"name": "features"}
    model = build(
        {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": spec, "readout": readout}, source.class_names
    )
    do = {"kind": "none", "probability": 0.0, "per": "sample"}
    stage = {"epochs": 1, "learn": {}, "terms": terms, "select": [], "views": 1, "do": do}
    built = build_terms(dict.fromkeys(terms, 1.0), {}, source)
    with pytest.raises(UserError, match=said):
        check_recipe(model, source, {"joint": stage}, built, {"joint": []})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("orthogonality", {"norm": "l2"}, "no norm 'l2'"),
        ("orthogonality", {"rows": "parts"}, "did you mean 'part'"),
        ("forbid_patches", {}, "terms.forbid_patches.marks=FILE.csv"),
        ("forbid_patches", {"marks": "x.csv", "images": 0}, "give 1 or more"),
    ],
)
def test_options_are_checked(name, options, said, source):
    with pytest.raises(UserError, match=said):
        build_terms({name: 1.0}, {name: options}, source)
