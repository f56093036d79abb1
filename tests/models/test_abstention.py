"""When a model does not answer: confidence, the threshold for a target, and what is saved of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import Preprocessing
from vitrarium.models import build
from vitrarium.models.abstention import Abstention, AbstentionRule, Ranked, confidence_of, upper_bound
from vitrarium.models.folder import load_model, save_abstention, save_model

NAMES = ["a", "b", "c"]


def answers(probabilities, wrong):
    """Logits over three classes whose largest probability is given, and labels that make some of them errors."""
    rest = [(1 - p) / 2 for p in probabilities]
    logits = torch.tensor([[p, r, r] for p, r in zip(probabilities, rest, strict=True)], dtype=torch.float64).log()
    return logits, torch.tensor([1 if w else 0 for w in wrong])


def binomial_tail(errors, images, rate):
    """P(at most ``errors`` of ``images``), term by term."""
    return sum(math.comb(images, k) * rate**k * (1 - rate) ** (images - k) for k in range(errors + 1))


@pytest.fixture
def model():
    spec = {"backbone": {"name": "convnet", "widths": [4]}, "evidence": "features", "readout": "linear"}
    return build(spec, NAMES, None, Preprocessing(16), seed=0).eval()


def test_confidence_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    for row, logit in zip(range(2), logits.tolist(), strict=True):
        shares = np.exp(logit) / np.exp(logit).sum()
        first, second = sorted(shares)[::-1][:2]
        assert float(confidence_of(logits)[row]) == pytest.approx(first, abs=1e-12)
        assert float(confidence_of(logits, "margin")[row]) == pytest.approx(first - second, abs=1e-12)


def test_sure_answers_are_told_apart():
    near = confidence_of(torch.tensor([[20.0, 0.0], [22.0, 0.0]]))
    assert near[0] < near[1] < 1


def test_steps_join_ties_and_count_resamples():
    ranked = Ranked(torch.tensor([0.5, 0.9, 0.5, 0.7]), torch.tensor([True, False, False, True]))
    assert ranked.thresholds.tolist() == pytest.approx([0.9, 0.7, 0.5])
    answered, errors = ranked.steps()
    assert answered.tolist() == [1, 2, 4]
    assert errors.tolist() == [0, 1, 2]
    answered, errors = ranked.steps(torch.tensor([[3.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 2.0]]))
    assert answered.tolist() == [[0, 0, 4], [2, 4, 4]]
    assert errors.tolist() == [[0, 0, 3], [0, 2, 2]]


@pytest.mark.parametrize(("errors", "images", "level"), [(0, 10, 0.95), (3, 20, 0.95), (19, 20, 0.9), (7, 200, 0.99)])
def test_the_bound_is_where_so_few_errors_become_unlikely(errors, images, level):
    rate = upper_bound(errors, images, level)
    assert binomial_tail(errors, images, rate) == pytest.approx(1 - level, rel=1e-6)


def test_the_bound_of_nothing_but_errors_is_one():
    assert upper_bound(4, 4, 0.95) == 1.0


def test_the_most_is_answered_that_a_risk_allows():
    #                 risk:  0    0    1/3  1/4  2/5  1/3
    logits, labels = answers([0.99, 0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 0, 1, 0])
    for risk, confidence, coverage in ((0.0, 0.9, 2 / 6), (0.25, 0.7, 4 / 6), (0.3, 0.7, 4 / 6), (0.34, 0.5, 1.0)):
        found = AbstentionRule(risk=risk).choose(logits, labels)
        assert found.met
        assert found.threshold == pytest.approx(confidence)
        assert found.coverage == pytest.approx(coverage)
        assert found.risk <= risk


def test_without_a_target_half_of_the_error_is_and_four_fifths_of_the_images():
    sure = [0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5]
    logits, labels = answers(sure, [0] * 8 + [1, 1])
    found = AbstentionRule().choose(logits, labels)
    assert found.target == pytest.approx(0.1)
    assert (found.rule, found.coverage, found.risk, found.images) == ("risk", pytest.approx(0.8), 0, 10)
    # The two surest alone would meet the target, but a fifth of the images is no answer.
    hard = AbstentionRule().choose(*answers(sure, [0, 0, 1, 0, 0, 0, 0, 0, 1, 0]))
    assert (hard.met, hard.coverage, hard.risk) == (False, pytest.approx(0.8), 0.125)
    perfect = AbstentionRule().choose(logits, labels * 0)
    assert (perfect.coverage, perfect.risk, perfect.met) == (1, 0, True)
    assert perfect.threshold == pytest.approx(0.5)


def test_tied_images_are_answered_together():
    logits, labels = answers([0.9, 0.9, 0.9, 0.6], [0, 0, 1, 0])
    found = AbstentionRule(risk=0.3).choose(logits, labels)
    assert found.coverage == 1.0
    found = AbstentionRule(coverage=0.5).choose(logits, labels)
    assert found.coverage == 0.75
    assert found.risk == pytest.approx(1 / 3)


def test_a_target_out_of_reach_is_said_and_the_closest_taken():
    logits, labels = answers([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    found = AbstentionRule(risk=0.1).choose(logits, labels)
    assert not found.met
    # Two thresholds have an error of one half: the one that answers more.
    assert (found.coverage, found.risk) == (1.0, 0.5)
    assert "not reached" in found.words()


def test_the_least_coverage_that_is_enough():
    logits, labels = answers([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1])
    for coverage, answered in ((0.01, 0.25), (0.25, 0.25), (0.26, 0.5), (0.75, 0.75), (1.0, 1.0)):
        assert AbstentionRule(coverage=coverage).choose(logits, labels).coverage == answered


def test_with_confidence_the_bound_keeps_to_the_target():
    rng = np.random.default_rng(0)
    sure = np.sort(rng.uniform(0.4, 1, 400))[::-1]
    wrong = rng.random(400) > sure
    logits, labels = answers(sure.tolist(), wrong.tolist())
    plain = AbstentionRule(risk=0.2).choose(logits, labels)
    safe = AbstentionRule(risk=0.2, confidence=0.95).choose(logits, labels)
    assert safe.met
    assert safe.threshold > plain.threshold
    # Every one of the at most nine looks of a search by halves over 400 candidates has its share of the 5 %.
    kept = round(safe.coverage * 400)
    errors = int(wrong[:kept].sum())
    assert binomial_tail(errors, kept, safe.bound) == pytest.approx(0.05 / 9, rel=1e-5)
    assert safe.bound <= 0.2
    few = AbstentionRule(risk=0.01, confidence=0.95).choose(*answers([0.9] * 20, [0] * 20))
    assert not few.met
    assert few.risk == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"risk": 0.1, "coverage": 0.9}, "both given"),
        ({"coverage": 0.9, "confidence": 0.95}, "about abstain.risk"),
        ({"risk": 1.5}, "abstain.risk is 1.5"),
        ({"coverage": 0.0}, "abstain.coverage is 0.0"),
        ({"risk": 0.1, "confidence": 95}, "abstain.confidence is 95"),
        ({"score": "probabilty"}, "did you mean 'probability'"),
    ],
)
def test_rules_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said):
        AbstentionRule(**options)


def test_saved_loaded_and_set_anew(model, tmp_path):
    logits, labels = answers([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])
    model.abstention = AbstentionRule(score="margin").choose(logits, labels)
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").abstention == model.abstention
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    other = AbstentionRule(coverage=0.5).choose(logits, labels)
    save_abstention(tmp_path / "model", other)
    again = load_model(tmp_path / "model")
    assert again.abstention == other
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert not list((tmp_path / "model").glob("*.part"))
    save_abstention(tmp_path / "model", None)
    assert load_model(tmp_path / "model").abstention is None


def test_folders_of_earlier_versions_load_and_damaged_ones_say_so(model, tmp_path):
    config = save_model(model, tmp_path / "model") / "config.json"
    described = json.loads(config.read_text())
    del described["abstention"]
    config.write_text(json.dumps(described))
    assert load_model(tmp_path / "model").abstention is None
    config.write_text(json.dumps({**described, "abstention": {"threshold": "high"}}))
    with pytest.raises(UserError, match="threshold for abstaining is not readable"):
        load_model(tmp_path / "model")


def test_predictions_below_the_threshold_abstain(model):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    plain = model.predict(image)
    assert not plain.abstained
    assert plain.confidence == pytest.approx(plain.probability, abs=1e-6)
    logits, labels = answers([0.9, 0.8], [0, 0])
    chosen = AbstentionRule(score="margin").choose(logits, labels)
    first, second = list(plain.probabilities.values())[:2]
    for threshold, abstains in ((0.0, False), (first - second + 1e-4, True), (first - second - 1e-4, False)):
        model.abstention = Abstention(**{**chosen.to_dict(), "threshold": threshold})
        said = model.predict(image)
        assert said.abstained is abstains
        assert said.confidence == pytest.approx(first - second, abs=1e-6)
        assert said.label == plain.label
        assert {"abstained", "confidence"} <= said.to_dict().keys()


def test_deployed_models_keep_their_threshold(model):
    model.abstention = AbstentionRule().choose(*answers([0.9, 0.8], [0, 1]))
    assert model.deploy().abstention == model.abstention
