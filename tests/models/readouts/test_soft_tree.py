"""The tree against a naive one, written as nodes that call their children, in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import build, load_model, save_model
from vitrarium.models.evidence.prototypes import Prototypes
from vitrarium.models.readouts import tree_math
from vitrarium.models.readouts.soft_tree import DECISIONS, SoftTree
from vitrarium.models.types import Evidence

CLASSES = 4


def make(height=3, seed=0, **options):
    torch.manual_seed(seed)
    layer = Prototypes(channels=5, classes=CLASSES, shared=2**height - 1, similarity="exp_l2")
    tree = SoftTree(layer, CLASSES, **options).double().eval()
    tree.leaves.copy_(3 * torch.rand_like(tree.leaves))
    tree.reach.copy_(torch.rand_like(tree.reach)).div_(tree.reach.sum())
    return tree


def gates(rows, depth=3, seed=1):
    return torch.rand(rows, 2**depth - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evidence(values):
    return Evidence(values, values)


class Node:
    """A tree of objects; a leaf has no children. Cut leaves are None, and their sibling moves up."""

    def __init__(self, unit, left=None, right=None, leaf=None):
        self.unit, self.left, self.right, self.leaf = unit, left, right, leaf

    @classmethod
    def grow(cls, tree, level=0, place=0):
        if level == tree.depth:
            return cls(None, leaf=place) if tree.kept[place] else None
        left, right = (cls.grow(tree, level + 1, 2 * place + side) for side in (0, 1))
        if left is None or right is None:
            return left or right
        return cls(2**level - 1 + place, left, right)

    def soft(self, gates, leaves):
        if self.leaf is not None:
            return leaves[self.leaf].softmax(0)
        g = gates[self.unit]
        return (1 - g) * self.left.soft(gates, leaves) + g * self.right.soft(gates, leaves)

    def greedy(self, gates):
        if self.leaf is not None:
            return self.leaf, 0
        leaf, asked = (self.right if gates[self.unit] > 0.5 else self.left).greedy(gates)
        return leaf, asked + 1

    def likely(self, gates):
        if self.leaf is not None:
            return 1.0, self.leaf
        (p, a), (q, b) = self.left.likely(gates), self.right.likely(gates)
        g = float(gates[self.unit])
        return ((1 - g) * p, a) if (1 - g) * p >= g * q else (g * q, b)

    def mass(self, tree):
        """Reach-weighted distribution below, and the reach."""
        if self.leaf is not None:
            r = tree.reach[self.leaf]
            return r * tree.leaves[self.leaf].softmax(0), r
        (a, p), (b, q) = self.left.mass(tree), self.right.mass(tree)
        return a + b, p + q


CUTS = {"whole": [True] * 8, "pruned": [True, False, True, True, False, False, True, True]}


@pytest.mark.parametrize("cut", CUTS)
def test_the_three_decisions_are_those_of_a_tree_of_objects(cut):
    tree, x = make(), gates(20)
    if cut == "pruned":
        tree.cut(torch.tensor(CUTS[cut]))
    root = Node.grow(tree)
    for row in range(len(x)):
        soft = root.soft(x[row], tree.leaves)
        torch.testing.assert_close(tree.answer(x, "soft")[row].exp(), soft, rtol=0, atol=1e-12)
        leaf, asked = root.greedy(x[row])
        assert int(tree.leaf(x, "greedy")[row]) == leaf
        assert int(tree.path_length(evidence(x), "greedy")[row]) == asked
        assert int(tree.leaf(x, "likely")[row]) == root.likely(x[row])[1]
        torch.testing.assert_close(tree.answer(x, "greedy")[row], tree.leaves[leaf].log_softmax(0))


@pytest.mark.parametrize("depth", [1, 5, 9])
def test_path_mass_sums_to_one_and_not_to_e(depth):
    """The release starts its logarithmic mode at 1: its mass is e."""
    for values in (gates(7, depth), torch.zeros(2, 2**depth - 1), torch.ones(2, 2**depth - 1)):
        paths = tree_math.node_paths(values, torch.zeros(2**depth - 1, dtype=torch.int64))
        for level in paths:
            torch.testing.assert_close(level.exp().sum(-1), torch.ones(len(values)).to(level), rtol=0, atol=1e-5)


def test_a_pruned_tree_still_answers_with_certainty_one():
    tree = make()
    tree.cut(torch.tensor(CUTS["pruned"]))
    paths = tree.paths(gates(5))[-1]
    torch.testing.assert_close(paths.exp().sum(-1), torch.ones(5).double())
    assert (paths.exp()[:, ~tree.kept] == 0).all()
    assert tree.decides.tolist() == [True, True, False, False, True, False, True]
    assert tree.turn.tolist() == [0, 0, 1, -1, 0, 0, 0]


def test_cutting_what_nobody_reaches_changes_no_answer():
    tree, x = make(), gates(30)
    x[:, 1] = 0.0  # left of the root nobody goes right
    before = {way: tree.answer(x, way) for way in DECISIONS}
    tree.cut(torch.tensor([True, True, False, False, True, True, True, True]))
    for way in DECISIONS:
        torch.testing.assert_close(tree.answer(x, way), before[way], rtol=0, atol=1e-12)


def test_a_tree_is_not_cut_to_nothing():
    tree = make()
    for kept in ([False] * 8, [False] * 7 + [True]):
        with pytest.raises(UserError, match="needs at least 2"):
            tree.cut(torch.tensor(kept))
    assert tree.kept.all()
    assert tree.decides.all()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("decide", DECISIONS)
def test_contributions_are_steps_from_node_to_node(decide, cut):
    tree, x = make(decide=decide), gates(12)
    tree.cut(torch.tensor(CUTS[cut]))
    classes = torch.arange(12) % CLASSES
    said = tree.contributions(evidence(x), classes)
    logit = tree.answer(x, decide).gather(1, classes[:, None])[:, 0]
    assert said.additive
    torch.testing.assert_close(said.units.sum(1) + said.bias, logit, rtol=0, atol=1e-9)
    assert (said.units[:, ~tree.decides] == 0).all()
    mass, reach = Node.grow(tree).mass(tree)
    torch.testing.assert_close(said.bias, (mass / reach).log()[classes])
    if decide == "soft":
        return
    for row, path in enumerate(tree.path(evidence(x))):
        told = [math.log(step.before[classes[row]]) for step in path.steps] + [math.log(path.answer[classes[row]])]
        for step, (before, after) in zip(path.steps, itertools.pairwise(told), strict=True):
            assert float(said.units[row, step.unit]) == pytest.approx(after - before, abs=1e-9)
        assert (said.units[row] != 0).sum() <= len(path.steps)


def test_soft_contributions_follow_their_formula():
    """One level by hand: the share of a node in the change of log F is d_n over the logarithmic mean."""
    tree, x = make(height=2, decide="soft"), gates(6, depth=2)
    share = tree.reach / tree.reach.sum()
    below = tree.leaves.softmax(1)[:, 0]
    left, right = (share[:2] * below[:2]).sum() / share[:2].sum(), (share[2:] * below[2:]).sum() / share[2:].sum()
    start = (share * below).sum()
    found = tree.contributions(evidence(x), torch.zeros(6, dtype=torch.int64)).units
    for row, (g0, g1, g2) in enumerate(x):
        first = (1 - g0) * left + g0 * right
        assert float(found[row, 0]) == pytest.approx(float((first / start).log()), abs=1e-12)
        d1 = (1 - g0) * ((1 - g1) * below[0] + g1 * below[1] - left)
        d2 = g0 * ((1 - g2) * below[2] + g2 * below[3] - right)
        mean = (d1 + d2) / ((first + d1 + d2).log() - first.log())
        torch.testing.assert_close(found[row, 1:], torch.stack([d1, d2]) / mean)


def test_contributions_of_leaves_that_are_sure_of_another_class():
    """Probabilities that underflow: the account is in logarithms."""
    tree = make(decide="greedy")
    tree.leaves.mul_(0).add_(4000 * torch.eye(CLASSES).repeat(2, 1))
    said = tree.contributions(evidence(gates(9)), torch.zeros(9, dtype=torch.int64))
    logit = tree.answer(gates(9), "greedy")[:, 0]
    torch.testing.assert_close(said.units.sum(1) + said.bias, logit, rtol=1e-9, atol=1e-6)
    assert torch.isfinite(said.units).all()


def test_leaf_counts_are_those_of_a_loop():
    tree, x = make(), gates(17)
    label = torch.arange(17) % CLASSES
    paths, shares = tree.paths(x)[-1].exp(), tree.leaves.softmax(1)
    expected = torch.zeros_like(tree.leaves)
    for i in range(17):
        answer = (paths[i, :, None] * shares).sum(0)
        truth = torch.nn.functional.one_hot(label[i], CLASSES)
        for leaf in range(8):
            expected[leaf] += paths[i, leaf] * shares[leaf] * truth / answer
    found = tree_math.leaf_counts(paths.log(), tree.leaves, label)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert float(found.sum()) == pytest.approx(17)


def test_leaf_counts_stay_finite_where_probabilities_underflow():
    paths = torch.tensor([[-500.0, -400.0, 0.0, float("-inf")]])
    leaves = torch.zeros(4, 2)
    leaves[2, 1] = 5000.0  # the leaf that is reached is sure of the other class
    found = tree_math.leaf_counts(paths, leaves, torch.tensor([0]))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("pruned", [False, True])
def test_the_gradient_reaches_every_gate_that_decides(pruned):
    tree, x = make().train(), gates(6).requires_grad_()
    if pruned:
        tree.cut(torch.tensor(CUTS["pruned"]))
    loss = torch.nn.functional.nll_loss(tree(evidence(x)), torch.arange(6) % CLASSES)
    (found,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(found).all()
    assert torch.equal((found != 0).any(0), tree.decides)

    def again(values):
        return torch.nn.functional.nll_loss(tree(evidence(values)), torch.arange(6) % CLASSES)

    assert torch.autograd.gradcheck(again, (x,))


def test_alike_leaves_teach_nothing_and_the_default_start_is_not_alike():
    for spread, teaches in ((0.0, False), (1.0, True)):
        torch.manual_seed(0)
        layer = Prototypes(channels=5, classes=CLASSES, shared=7, similarity="exp_l2")
        tree, x = SoftTree(layer, CLASSES, spread=spread).train(), gates(3).float().requires_grad_()
        tree(evidence(x))[:, 0].sum().backward()
        assert bool(x.grad.abs().max() > 1e-6) is teaches


def test_training_is_soft_whatever_evaluation_does():
    tree, x = make(decide="greedy"), evidence(gates(4))
    greedy = tree(x)
    assert torch.equal(tree.train()(x), tree.answer(x.vector, "soft"))
    tree.eval().decide = "soft"
    assert not torch.allclose(tree(x), greedy)
    with pytest.raises(UserError, match="did you mean 'greedy'"):
        tree.decide = "gredy"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"shared": 6}, "set model.evidence.shared=7"), ({"shared": 8}, "set model.evidence.shared=7")],
)
def test_a_wrong_number_of_units_is_refused_with_the_right_one(options, said):
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "readout": "soft_tree"}
    evidence = {"name": "prototypes", "similarity": "exp_l2", **options}
    with pytest.raises(UserError, match=said):
        build({**spec, "evidence": evidence}, ("a", "b"))


@pytest.mark.parametrize(
    ("readout", "said"),
    [
        ({"depth": 4}, "depth 4 needs 15 prototypes"),
        ({"depth": 0}, "at least 1"),
        ({"decide": "softly"}, "did you mean 'soft'"),
        ({"spread": -1.0}, "spread=-1"),
    ],
)
def test_refusals(readout, said):
    with pytest.raises(UserError, match=said):
        make(**readout)


def test_other_similarities_are_no_gates():
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "readout": "soft_tree"}
    with pytest.raises(UserError, match="needs gates"):
        build({**spec, "evidence": {"name": "prototypes", "shared": 7}}, ("a", "b"))


def test_owners_are_the_classes_below():
    tree = make()
    tree.leaves.copy_(torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2, 3, 3, 0, 1]), CLASSES))
    tree.cut(torch.tensor([True, True, True, False, True, True, False, False]))
    found = [row.nonzero()[:, 0].tolist() for row in tree.owners()]
    # Nodes 4 and 6 have lost a side, node 2 leads left without asking.
    assert found == [[0, 1, 2, 3], [0, 1, 2], [], [0, 1], [], [3], []]


def test_rules_say_each_leaf_once():
    tree = make(height=2)
    tree.leaves.copy_(9.0 * torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3]), CLASSES))
    tree.cut(torch.tensor([True, True, False, True]))
    rules = tree.rules()
    assert [r["words"] for r in rules] == [
        "prototype_0 absent, prototype_1 absent -> class 0",
        "prototype_0 absent, prototype_1 present -> class 1",
        "prototype_0 present -> class 3",
    ]
    assert sum(r["reach"] for r in rules) == pytest.approx(1)


def test_paths_tell_what_was_asked():
    tree = make()
    tree.cut(torch.tensor(CUTS["pruned"]))
    x = gates(10)
    for row, path in enumerate(tree.path(evidence(x), "greedy")):
        assert len(path.steps) == int(tree.path_length(evidence(x), "greedy")[row])
        assert path.leaf == int(tree.leaf(x, "greedy")[row])
        assert all(step.present == (step.similarity > 0.5) for step in path.steps)
        taken = [s.similarity if s.present else 1 - s.similarity for s in path.steps]
        assert path.probability == pytest.approx(math.prod(taken))
        assert all(sum(step.before) == pytest.approx(1) for step in path.steps)
    assert {p.decide for p in tree.path(evidence(x), "soft")} == {"likely"}


RELOAD = """
import sys, torch
from vitrarium.models import build
path = sys.argv[1]
model = build({"backbone": {"name": "convnet", "widths": (4, 4)}, "readout": "soft_tree",
               "evidence": {"name": "prototypes", "similarity": "exp_l2", "shared": 15}}, ("a", "b", "c"), seed=99)
saved = torch.load(path, weights_only=True)
model.load_state_dict(saved["state"])
model.eval()
answers = model.readout.answers(model(saved["x"]).evidence)
print(all(torch.equal(answer, saved[way]) for way, answer in answers.items()))
"""


def test_a_state_dict_means_the_same_in_another_process(tmp_path):
    """The release files nodes in a set of objects, so their weights change places from process to process."""
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "readout": "soft_tree"}
    evidence = {"name": "prototypes", "similarity": "exp_l2", "shared": 15}
    model = build({**spec, "evidence": evidence}, ("a", "b", "c"), seed=1).eval()
    model.readout.cut(torch.rand(16) < 0.8)
    x = torch.rand(6, 3, 16, 16)
    answers = model.readout.answers(model(x).evidence)
    torch.save({"state": model.state_dict(), "x": x, **{w: a.detach() for w, a in answers.items()}}, tmp_path / "s.pt")
    done = subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path / "s.pt")], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    save_model(model, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model")(x).logits, model(x).logits)
