"""The pool of prototypes against loops in float64."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.models import Features, Intervention, build
from vitrarium.models.evidence.prototype_pool import PrototypePool

CLASSES, SLOTS, SIZE = 3, 2, 5


def pool(seed=0, training=False, **options):
    torch.manual_seed(seed)
    layer = PrototypePool(4, CLASSES, size=SIZE, slots=SLOTS, **options).double()
    return layer.train(training)


def features(seed=1, rows=6):
    return Features(torch.rand(rows, 4, 3, 3, generator=torch.Generator().manual_seed(seed)).double())


def similarity_of(kind, distance, epsilon=1e-4):
    return math.log((distance + 1) / (distance + epsilon)) if kind == "log_l2" else math.exp(-math.sqrt(distance))


def squared_distances(layer, x):
    """(B, M, places) by loops, from the latent map."""
    latent = layer.embed(x).flatten(2)
    prototypes = layer.prototypes[:, :, 0, 0]
    return torch.stack(
        [
            torch.stack([torch.stack([((z - p) ** 2).sum() for z in image.T]) for p in prototypes])
            for image in latent
        ]
    )  # fmt: skip


def test_focal_similarity_is_best_minus_mean():
    layer, x = pool(), features()
    latent, prototypes = layer.embed(x).flatten(2).detach(), layer.prototypes[:, :, 0, 0].detach()
    evidence = layer(x).detach()
    for b in range(6):
        for m in range(SIZE):
            each = [float(z @ prototypes[m] / z.norm().clamp_min(1e-12) / prototypes[m].norm()) for z in latent[b].T]
            assert float(evidence.activations[b, m]) == pytest.approx(max(each) - sum(each) / 9, abs=1e-12)


@pytest.mark.parametrize("kind", ["log_l2", "exp_l2"])
def test_mixed_distances_are_those_of_the_release(kind):
    layer, x = pool(training=True, similarity=kind, mix="distances"), features()
    torch.manual_seed(7)
    evidence = layer(x).detach()
    shares, distance = evidence.state["slots"][0], squared_distances(layer, x).detach()
    for b in range(6):
        for e in range(CLASSES * SLOTS):
            nearest = sum(float(shares[e, m] * distance[b, m].min()) for m in range(SIZE))
            mean = sum(float(shares[e, m] * distance[b, m].mean()) for m in range(SIZE))
            wanted = similarity_of(kind, nearest) - similarity_of(kind, mean)
            assert float(evidence.vector[b, e]) == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"similarity": "log_l2"}, {"similarity": "log_l2", "mix": "distances"}])
def test_a_hard_assignment_gives_the_activation_of_its_prototype(options):
    layer, x = pool(training=True, **options), features()
    with torch.no_grad():
        layer.choice.zero_().scatter_(2, torch.tensor([[[1], [4]], [[1], [0]], [[3], [3]]]), 1.0)
        layer.sharpness.fill_(1e4)
    soft = layer(x)
    hard = layer.eval()(x)
    assert layer.unit_of.tolist() == [1, 4, 1, 0, 3, 3]
    torch.testing.assert_close(soft.vector, hard.vector, rtol=0, atol=1e-9)
    assert torch.equal(hard.vector, hard.activations[:, layer.unit_of])
    torch.testing.assert_close(soft.activations, hard.activations, rtol=0, atol=1e-9)


def test_training_draws_from_the_gumbel_softmax():
    layer = pool(training=True, tau=0.7)
    layer.sharpness.fill_(3.0)
    torch.manual_seed(5)
    drawn = layer.assignment()
    torch.manual_seed(5)
    noise = -torch.log(torch.empty(CLASSES * SLOTS, SIZE).double().exponential_())
    torch.testing.assert_close(drawn, ((3 * layer.choice.flatten(0, 1) + noise) / 0.7).softmax(1))
    torch.manual_seed(5)
    assert torch.equal(layer.assignment(), drawn), "the same seed draws the same"
    # Gumbel's trick: the largest of the noisy numbers is m with probability softmax(q)_m.
    with torch.no_grad():
        layer.choice[:] = torch.tensor([0.0, 1.0, 0.5, -1.0, 0.2])
        layer.sharpness.fill_(1.0)
        counts = sum(torch.bincount(layer.assignment().argmax(1), minlength=SIZE) for _ in range(1000)).double()
        torch.testing.assert_close(counts / counts.sum(), layer.choice[0, 0].softmax(0), rtol=0, atol=0.03)


def test_no_noise_in_evaluation():
    layer, x = pool(), features()
    state = torch.get_rng_state()
    assert torch.equal(layer(x).vector, layer(x).vector)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert set(layer.assignment().unique().tolist()) == {0.0, 1.0}


def test_slots_belong_to_classes_and_owners_follow_the_choice():
    layer = pool()
    with torch.no_grad():
        layer.choice.zero_().scatter_(2, torch.tensor([[[1], [4]], [[1], [1]], [[3], [4]]]), 1.0)
    assert layer.class_of_entry.tolist() == [0, 0, 1, 1, 2, 2]
    wanted = [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert layer.owners().int().tolist() == wanted
    assert layer.class_of.tolist() == [-1] * SIZE


@pytest.mark.parametrize("options", [{}, {"similarity": "log_l2", "mix": "distances"}])
def test_training_teaches_prototypes_latent_and_choice(options):
    layer, x = pool(training=True, **options), features()
    x.map.requires_grad_()
    (layer(x).vector * torch.arange(1.0, CLASSES * SLOTS + 1)).sum().backward()
    for tensor in (layer.prototypes, layer.choice, x.map):
        assert tensor.grad is not None
        assert bool((tensor.grad.abs() > 0).any())


def test_what_is_set_or_pruned_in_training_counts_by_its_share():
    layer, x = pool(training=True, similarity="log_l2", mix="distances"), features()
    evidence = layer(x)
    shares = evidence.state["slots"][0]
    mask = torch.zeros(6, SIZE, dtype=torch.bool)
    mask[:, 2] = True
    changed = layer.intervene(evidence, Intervention(mask, torch.full((6, SIZE), 4.0)))
    step = (4.0 - evidence.activations[:, 2:3]) * shares[:, 2]
    torch.testing.assert_close(changed.vector, evidence.vector + step, rtol=0, atol=1e-9)


def test_a_banned_region_counts_neither_in_best_nor_in_mean():
    layer, x = pool(similarity="log_l2", mix="distances"), features()
    region = torch.zeros(6, 1, 3, 3)
    region[:, :, 0, 1] = region[:, :, 2, 2] = 1.0
    confined = layer.confine(layer(x), region)
    distance = squared_distances(layer, x)[:, :, [1, 8]].detach()
    wanted = [
        [similarity_of("log_l2", float(d.min())) - similarity_of("log_l2", float(d.mean())) for d in row]
        for row in distance
    ]
    torch.testing.assert_close(confined.activations, torch.tensor(wanted).double(), rtol=0, atol=1e-6)


def test_half_precision_does_not_mix_in_half():
    layer, x = pool(training=True, similarity="log_l2", mix="distances").float(), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evidence = layer(Features(x.map.float()))
    assert evidence.vector.dtype == torch.float32


def shared_model(readout="class_connected"):
    evidence = {"name": "prototype_pool", "size": SIZE, "slots": SLOTS}
    spec = {"backbone": {"name": "convnet", "widths": (4, 4)}, "evidence": evidence, "readout": readout}
    return build(spec, ("a", "b", "c"), seed=0).eval()


def rehome(model, order):
    with torch.no_grad():
        model.evidence.choice.zero_().scatter_(2, torch.tensor(order)[..., None], 1.0)


@pytest.mark.parametrize("readout", ["class_connected", "linear", "mlp"])
def test_readouts_follow_a_choice_that_changes(readout):
    """Contributions are told to the prototype that fills a slot now, not when the readout was built."""
    model, x = shared_model(readout), torch.rand(4, 3, 16, 16)
    for order in ([[0, 1], [2, 3], [4, 0]], [[3, 3], [3, 1], [2, 1]]):
        rehome(model, order)
        copies = (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.deploy())
        for one in copies:
            assert one.readout.unit_of.tolist() == [m for slots in order for m in slots]
            output = one(x)
            said = one.contributions(output.evidence, torch.tensor([0, 1, 2, 0]))
            unused = [m for m in range(SIZE) if m not in {m for slots in order for m in slots}]
            assert not said.units[:, unused].any()
            total = said.units.sum(1) + said.remainder + said.bias
            torch.testing.assert_close(total, output.logits.gather(1, torch.tensor([0, 1, 2, 0])[:, None])[:, 0])


def test_copies_follow_their_own_layer_and_readouts_hold_none_of_its_weights():
    model = shared_model()
    rehome(model, [[0, 0], [0, 0], [0, 0]])
    other = copy.deepcopy(model)
    rehome(other, [[1, 1], [1, 1], [1, 1]])
    assert set(model.readout.unit_of.tolist()) == {0}
    assert set(other.readout.unit_of.tolist()) == {1}
    assert not any("choice" in name or "layer" in name for name in model.readout.state_dict())
    deployed = other.deploy()
    assert deployed.readout._layer is deployed.evidence
    again = shared_model()
    again.load_state_dict(other.state_dict())
    assert set(again.readout.unit_of.tolist()) == {1}


def test_rules_sum_the_slots_of_a_prototype():
    model = shared_model("linear")
    rehome(model, [[2, 2], [2, 0], [0, 0]])
    weight = model.readout.linear.weight
    rule = model.readout.rules()[1]["weights"]
    assert set(rule) == {"prototype_0", "prototype_2"}
    assert rule["prototype_2"] == pytest.approx(float(weight[1, :3].detach().sum()))


def test_the_pool_is_as_large_as_the_papers_by_default():
    assert len(PrototypePool(4, 200).units) == 200
    assert len(PrototypePool(4, 5).units) == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mix": "distance"}, "distances"),
        ({"mix": "distances"}, "linear in its distance"),
        ({"size": 0}, "at least 1 prototype"),
        ({"slots": 0}, "at least 1 prototype"),
        ({"tau": 0.0}, "tau above 0"),
        ({"similarity": "cosin"}, "cosine"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(UserError, match=said):
        PrototypePool(4, 3, **options)
