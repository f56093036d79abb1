"""This looks like that: sources, matches, boxes and what they are worth, derived again."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.data.preprocessing import Preprocessing
from vitrarium.eval.explanations import Explanation, explain, words
from vitrarium.eval.explanations.looks import weightiest
from vitrarium.eval.explanations.patches import Match, Source
from vitrarium.eval.explanations.prototypes import source_of
from vitrarium.models import build
from vitrarium.models.evidence.base import EVIDENCE
from vitrarium.models.evidence.prototypes import Prototypes
from vitrarium.models.prototypes.boxes import misalignment
from vitrarium.models.prototypes.drift import weights_checksum
from vitrarium.models.types import Evidence
from vitrarium.models.units import UnitTable

CLASSES = ("rose", "lily", "daisy")


@EVIDENCE.register("two_prototypes_a_unit")
class TwoPrototypesAUnit(Prototypes):
    """Six prototypes that make up three units: the better one of two counts."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, per_class=2)
        units = UnitTable.anonymous("part", 3)
        units.absent, units.present = torch.zeros(3), torch.ones(3)
        self.set_prototypes(units, classes, torch.arange(3).repeat_interleave(2),
                            unit_of_prototype=torch.tensor([0, 1, 2, 0, 1, 2]))  # fmt: skip

    def of_units(self, maps):
        """Maps of prototypes to maps of units: the better one at each place."""
        return torch.stack([maps[:, self.unit_of_prototype == m].amax(1) for m in range(3)], 1)

    def forward(self, features):
        maps = self.of_units(self.similarity(self.embed(features)))
        activations = self.reduce(maps)
        return Evidence(activations, activations, maps=maps)


def make(evidence=None, readout="class_connected"):
    evidence = evidence or {"name": "prototypes", "per_class": 2}
    spec = {"backbone": {"name": "convnet", "widths": (8, 8)}, "evidence": evidence, "readout": readout}
    return build(spec, CLASSES, None, Preprocessing(32), 0).eval()


def project(model, which):
    """Sources as projection files them, without a data set."""
    sources = model.evidence.sources
    for p in which:
        sources.index[p], sources.label[p], sources.drift[p], sources.similarity[p] = 100 + p, p % 3, 0.125, 0.9
        sources.box[p] = torch.tensor([0.25, 0.0, 0.75, 0.5])
        sources.field[p] = torch.tensor([0.0, 0.0, 1.0, 0.75])
        if sources.picture.numel():
            sources.picture[p] = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(p))
    sources.state.fill_(weights_checksum(model))
    return model


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model():
    return project(make(), [0, 1, 2, 4, 5])


def maps_of(model, picture):
    with torch.no_grad():
        features = model.backbone(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
        return model.evidence.similarity(model.evidence.embed(features))[0].double().numpy()


def test_match_and_source_are_those_of_the_prototype(model, picture):
    maps, found = maps_of(model, picture), explain(model, picture)
    assert len(found.looks) == 6
    for reason in found.reasons:
        p = int(reason.name.removeprefix("prototype_"))
        assert reason.match.prototype == p
        assert reason.match.owner == CLASSES[p // 2]
        assert reason.match.similarity == pytest.approx(maps[p].max(), abs=1e-5)
        row, column = np.unravel_index(maps[p].argmax(), maps[p].shape)
        left, top, right, bottom = reason.match.field
        assert left <= (column + 0.5) / 8 <= right
        assert top <= (row + 0.5) / 8 <= bottom
        if p == 3:
            assert reason.source is None
            continue
        assert (reason.source.index, reason.source.label) == (100 + p, CLASSES[p % 3])
        assert reason.source.box == (0.25, 0.0, 0.75, 0.5)
        assert (reason.source.drift, reason.source.current) == (0.125, True)
        np.testing.assert_array_equal(reason.source.picture, model.evidence.sources.picture[p].permute(1, 2, 0))


def test_running_sum_ends_in_the_logit(model, picture):
    found = explain(model, picture)
    weight = model.readout.linear.weight.detach().double().numpy()
    vector = maps_of(model, picture).max((1, 2))
    logits = weight @ vector
    running = 0.0
    for entry in found.looks:
        running += weight[CLASSES.index(found.label)][entry.reason.match.prototype] * entry.reason.match.similarity
        assert entry.running.label == pytest.approx(running, abs=1e-5)
        assert words.plain(entry.running.label) in words.look_words(found, entry)[1]
    assert running == pytest.approx(logits.max(), abs=1e-5)
    assert found.logit.label == pytest.approx(running, abs=1e-5)


def test_the_sentence_names_what_weighs_and_what_speaks_against(model, picture):
    with torch.no_grad():
        model.readout.linear.weight.zero_()
        model.readout.linear.weight[0] = torch.tensor([5.0, 0.001, 0.0, -3.0, 0.0, 0.0])
    found = explain(model, picture)
    said = words.sentence(found)
    assert found.label == "rose"
    assert "carried mostly by prototype 0 (+" in said
    assert "prototype 1" not in said
    assert f"although prototype 3 ({words.MINUS}" in said
    assert "speaks against it; what each of these looks like" in said


def test_boxes_are_tested(model, picture):
    found = explain(model, picture)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    for reason in found.reasons:
        box = torch.tensor([reason.match.box])
        kept, lost = misalignment(model, images, torch.tensor([reason.match.prototype]), box)
        assert reason.match.kept == pytest.approx(float(kept), rel=1e-4, abs=1e-5)
        assert reason.match.lost == pytest.approx(float(lost), rel=1e-4, abs=1e-5)
        assert reason.match.holds == (min(float(kept), float(lost)) >= 0.5)


@pytest.mark.parametrize(
    ("kept", "lost", "holds", "said"),
    [
        (0.9, 0.8, True, "box keeps 90 %, loses 80 %"),
        (0.49, 0.8, False, "does not hold"),
        (0.9, -0.1, False, "loses \N{MINUS SIGN}10 %"),
        (None, None, None, "not tested"),
    ],
)
def test_a_box_holds_if_it_keeps_and_loses_half(kept, lost, holds, said):
    match = Match(0, None, 0.5, (0, 0, 1, 1), (0, 0, 1, 1), kept, lost)
    assert match.holds is holds
    assert said in match.claim


def test_drift_is_told_and_stale_pictures_say_so(model, picture, tmp_path):
    found = explain(model, picture)
    assert {r.source.state for r in found.reasons if r.source} == {"drift 12.5 %"}
    with torch.no_grad():
        model.evidence.prototypes += 0.01
    stale = explain(model, picture)
    assert not any(r.source.current for r in stale.reasons if r.source)
    assert "may be stale" in words.units_words(stale)
    text = stale.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert text.count("picture may be stale") == 5
    assert "drift 12.5 %" in found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    model.evidence.sources.state.fill_(weights_checksum(model))
    model.evidence.sources.drift.fill_(float("nan"))
    assert source_of(model, 0).state == "drift not measured"


def test_without_a_source_it_says_so(picture, tmp_path):
    found = explain(make(), picture)
    assert "were not projected" in words.units_words(found)
    assert "have no names" in found.sentence()
    assert found.save(tmp_path / "why.html").read_text(encoding="utf-8").count(">not projected: no picture</div>") == 6
    some = explain(project(make(), [0, 1, 2, 4, 5]), picture)
    assert "1 of the 6 shown were not projected" in words.units_words(some)
    assert "training patch" in some.sentence()


def test_without_pictures_none_is_promised(picture):
    found = explain(project(make({"name": "prototypes", "per_class": 2, "picture": 0}), [0, 2]), picture)
    assert "keeps no pictures" in words.units_words(found)
    assert "training patch." not in found.sentence()


@pytest.mark.parametrize("evidence", [None, {"name": "prototypes", "per_class": 2, "picture": 0}])
def test_json_round_trip(picture, tmp_path, evidence):
    found = explain(project(make(evidence), [0, 2]), picture, do={"prototype_1": "ban:0,0,0.5,1",
                                                                          "everywhere": "ban:0.5,0,1,0.5"})  # fmt: skip
    again = Explanation.load(found.save(tmp_path / "why.json"))
    assert again.to_dict() == found.to_dict()
    for ours, theirs in zip(found.reasons, again.reasons, strict=True):
        assert ours.match == theirs.match
        assert ours.bans == theirs.bans
        assert (ours.source is None) == (theirs.source is None)
    assert again.bans == ((0.5, 0.0, 1.0, 0.5),)
    data = json.loads((tmp_path / "why.json").read_text())
    for reason in data["reasons"]:
        for name in ("bans", "match", "source"):
            del reason[name]
    for name in ("bans", "walk"):
        del data[name]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = Explanation.load(tmp_path / "old.json")
    assert old.looks == []
    assert old.bans == ()


def test_what_a_person_did_is_explained(model, picture, tmp_path):
    plain, maps = explain(model, picture), maps_of(model, picture)
    do = {
        "prototype_1": "silent",
        "prototype_2": "score:0.5",
        "prototype_4": "ban:0,0,1,0.5",
        "prototype_5": "ban:0,0,1,1",
    }
    found = explain(model, picture, do=do, top=1)
    by_name = {r.name: r for r in found.reasons}
    assert by_name["prototype_1"].value == "silent"
    assert by_name["prototype_2"].value == "0.50"
    assert by_name["prototype_4"].match.similarity == pytest.approx(maps[4, 4:].max(), abs=1e-5)
    assert by_name["prototype_4"].match.kept is None
    assert by_name["prototype_5"].match.similarity is None
    assert by_name["prototype_5"].match.box is None
    assert {r.name for r in found.shown} >= set(do), "what was changed is always shown"
    assert {e.reason.name for e in weightiest(found, 4)} == set(do)
    assert found.before == (plain.label, pytest.approx(plain.probabilities[plain.label]))
    said = words.correction_words(found)
    assert "prototype 1 = silent" in said
    assert "prototype 4 may not look at across 0–100 %, down 0–50 %" in said
    assert found.probabilities == pytest.approx(model.predict(picture, do=do).probabilities)
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert text.count('<i class="ban"') == 3, "two places, and the legend"
    assert "may look nowhere" in text
    assert "made silent" in text


def test_of_several_prototypes_the_best_is_shown(picture):
    model = make({"name": "two_prototypes_a_unit"}, "linear")
    maps, found = maps_of(model, picture), explain(model, picture)
    for reason in found.reasons:
        unit = int(reason.name.removeprefix("part_"))
        own = [p for p in range(6) if model.evidence.unit_of_prototype[p] == unit]
        assert reason.match.prototype == max(own, key=lambda p: maps[p].max())
    banned = explain(model, picture, do={"part_1": "ban:0,0,1,0.5"})
    match = next(r.match for r in banned.reasons if r.name == "part_1")
    assert match.prototype == max((1, 4), key=lambda p: maps[p, 4:].max())


@pytest.mark.parametrize("top", [1, 12])
def test_pictures_and_pages_show_both_boxes(model, picture, tmp_path, top):
    found = explain(model, picture, do={"everywhere": "ban:0,0,0.5,0.5"}, top=top)
    drawn = np.asarray(Image.open(found.save(tmp_path / "why.png")).convert("RGB")).astype(int)
    assert drawn.shape[1] == 1800
    assert (drawn[:, -30:] == 255).all(), "nothing runs over the right edge"
    amber = np.abs(drawn - np.array([255, 176, 0])).sum(2) < 12
    assert amber.sum() > 400
    card = np.asarray(Image.open(io.BytesIO(found.card())).convert("RGB")).astype(int)
    assert (card[:, -8:] == 255).all()
    assert (np.abs(card - np.array([255, 176, 0])).sum(2) < 12).sum() > 100
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    count = len(found.looks)
    assert text.count('<i class="field"') == 1 + count + sum(r.source is not None for r in found.shown)
    assert "95th percentile" in text
    assert "receptive field" in text


def test_a_failing_box_is_greyed_out(model, picture, tmp_path):
    found = explain(model, picture, top=1)
    match = found.reasons[0].match
    match.kept, match.lost = 0.2, 0.9
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert 'class="claim open">box does not hold: keeps 20 %, loses 90 %' in text
    assert text.count('<i class="fails" style') == 1
    greyed = np.asarray(Image.open(found.save(tmp_path / "why.png")).convert("RGB")).astype(int)
    match.kept = 0.9
    held = np.asarray(Image.open(found.save(tmp_path / "held.png")).convert("RGB")).astype(int)
    amber = [(np.abs(drawn - np.array([255, 176, 0])).sum(2) < 12).sum() for drawn in (greyed, held)]
    assert amber[1] > amber[0]
    assert found.save(tmp_path / "held.html").read_text(encoding="utf-8").count('<i class="fails" style') == 0


def test_trees_tell_their_path(picture, tmp_path):
    model = make({"name": "prototypes", "shared": 7, "similarity": "exp_l2"}, "soft_tree")
    found = explain(model, picture)
    assert found.walk.stops[0].name == "prototype_0"
    assert Explanation.from_dict(found.to_dict()).to_dict() == found.to_dict()
    assert "The path through the tree" in found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    tall = Image.open(found.save(tmp_path / "why.png")).height
    found.walk = None
    assert tall > Image.open(found.save(tmp_path / "short.png")).height
    assert explain(make(), picture).walk is None


def test_sources_survive_their_dictionaries():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    source = Source(3, None, picture, (0.0, 0.0, 1.0, 1.0), None, None, None, False)
    again = Source.from_dict(json.loads(json.dumps(source.to_dict())))
    np.testing.assert_array_equal(again.picture, picture)
    assert (again.box, again.field, again.drift) == (source.box, None, None)
    assert again.state == "picture may be stale: weights changed since"
    assert Source.from_dict(None) is None
    assert Match.from_dict(None) is None
