"""The comparison: rows, seeds, missing numbers, sweeps, sentences."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from vitrarium.configs.errors import UserError
from vitrarium.eval.records import Record, read_records, write_records
from vitrarium.eval.report import compare, read_run
from vitrarium.eval.report.breakdown import by_class, by_concept, by_condition
from vitrarium.eval.report.columns import COLUMNS
from vitrarium.eval.report.curves import curves_of
from vitrarium.eval.report.pareto import families_of, planes_of
from vitrarium.eval.report.protocol import protocol
from vitrarium.eval.report.ranks import rank
from vitrarium.eval.report.rows import plain_rows
from vitrarium.eval.report.sentences import NO_DIFFERENCE, balance, falling, in_short


@pytest.fixture(scope="module")
def found(experiment):
    return compare(experiment)


def row(found, label):
    return next(r for r in found.rows if r.label == label)


def test_rows_are_models_and_seeds_are_averaged(found, experiment):
    assert found.rows[0].preset == "blackbox"
    assert len(found.rows) == 8 + 4
    joint = row(found, "CBM (joint)")
    assert joint.seeds == [0, 1, 2]
    values = [
        next(r.value for r in read_run(f).records if r.metric == "accuracy" and r.scope == "all")
        for f in experiment
        if f.name in {"cbm-wbcatt-0", "cbm-wbcatt-1", "cbm-wbcatt-2"}
    ]
    assert joint.cell("accuracy").mean == pytest.approx(np.mean(values))
    assert joint.cell("accuracy").sd == pytest.approx(np.std(values, ddof=1))
    minutes = [run.progress["seconds"] / 60 for run in joint.runs]
    assert joint.cell("training_minutes").mean == pytest.approx(np.mean(minutes))


def test_table_has_a_row_per_model(found):
    table = found.table()
    assert [r["model"] for r in table] == [r.label for r in found.rows]
    assert list(table[0])[:4] == ["model", "seeds", "accuracy", "concept_accuracy"]
    assert math.isnan(table[0]["concept_accuracy"]), "a black box has no concepts: not zero"
    assert table[0]["seeds"] == 3


def test_missing_numbers_stay_missing(found, run, tmp_path):
    numbers = found.numbers()
    assert numbers[0]["concept_accuracy"] is None
    assert numbers[0]["intervention_area"] is None
    compare([run("blackbox"), run("cbm", scopes=())], tmp_path)
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0]["concept_accuracy"] == ""
    assert float(lines[1]["concept_accuracy"]) > 0
    assert "nan" not in str(lines)
    ranking = rank(found.rows, found.columns)
    keys = [c.key for c in ranking.columns]
    assert np.isnan(ranking.ranks[0, keys.index("concept_accuracy")])


def test_ranks_by_counting(found):
    rows = plain_rows(found.rows)
    assert not any(r.sweep for r in rows)
    ranking = rank(rows, found.columns)
    for j, column in enumerate(ranking.columns):
        values = [r.cell(column).mean for r in rows]
        for i, value in enumerate(values):
            if math.isnan(value):
                continue
            ahead = [
                v for v in values if not math.isnan(v) and ((v > value) == (column.better == "higher")) and v != value
            ]
            assert ranking.ranks[i, j] == 1 + len(ahead)
    np.testing.assert_allclose(ranking.mean, np.nanmean(ranking.ranks, 1))
    assert ranking.counted.tolist() == np.isfinite(ranking.ranks).sum(1).tolist()


def test_a_sweep_is_a_curve_through_the_plain_model(found):
    (family,) = families_of(found.rows)
    assert (family.preset, family.key) == ("cbm", "loss.concepts")
    assert family.values == [0.01, 0.1, 1.0, 10]
    assert family.rows[2].label == "CBM (joint)", "three seeds stand for the swept value that is the same"
    assert [r.value_of("loss.concepts") for r in family.rows] == family.values
    labels = [r.label for r in found.rows if r.sweep]
    assert labels == [f"CBM (joint), concepts weight = {v}" for v in ("0.01", "0.1", "1", "10")]


def test_every_plane_marks_its_front(found):
    planes = planes_of(found.rows, found.columns)
    assert {p.column.key for p in planes} >= {"concept_accuracy", "intervention_area", "explanation_size"}
    for plane in planes:
        better = 1 if plane.column.better == "higher" else -1
        points = [(r.cell("accuracy").mean, better * r.cell(plane.column).mean) for r in plane.rows]
        for p, front in zip(points, plane.front, strict=True):
            beaten = any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)
            assert front == (not beaten)
        assert len(plane.rows) == len({r.label for r in plane.rows})
    concept = next(p for p in planes if p.column.key == "concept_accuracy")
    assert [r.label for r in concept.without] == ["Black box"]
    assert "CBM (joint), concepts weight = 1" not in {r.label for r in concept.rows}, "drawn once"


def test_curves_over_seeds_and_what_falls(found):
    curves = curves_of(plain_rows(found.rows))
    assert {c.scope for c in curves} == {"all", "grey", "pixels16"}
    joint = next(c for c in curves if (c.row.label, c.scope, c.policy) == ("CBM (joint)", "all", "random"))
    per_seed = np.array(
        [[p.accuracy for p in run.curves if (p.scope, p.policy) == ("all", "random")] for run in joint.row.runs]
    )
    np.testing.assert_allclose([c.mean for c in joint.cells], per_seed.mean(0))
    assert joint.gain.mean == pytest.approx((per_seed[:, -1] - per_seed[:, 0]).mean())
    hard = next(c for c in curves if (c.row.label, c.scope, c.policy) == ("CBM (hard)", "all", "uncertainty"))
    assert hard.gain.low == pytest.approx(hard.gain.mean - 0.002), "from the record, though it names no policy"
    trends = {c.row.label: c.trend for c in curves if (c.scope, c.policy) == ("all", "random")}
    assert trends["CBM (joint)"] == trends["CBM (sequential)"] == trends["CBM (logit)"] == "falls"
    assert trends["CBM (independent)"] == "rises"
    assert trends["Multitask"] == "flat"
    assert trends["CBM (hard)"] == "unclear"
    clean = [c for c in curves if (c.scope, c.policy) == ("all", "random")]
    assert len(falling(clean)) == 3


def test_sentences_claim_no_difference_where_intervals_overlap(found):
    base = found.base("wbcatt")
    curves = curves_of(plain_rows(found.rows))
    seen = set()
    for other in plain_rows(found.rows)[1:]:
        said = balance(other, base, found.columns, curves)
        ours, theirs = other.cell("accuracy"), base.cell("accuracy")
        overlap = ours.low <= theirs.high and theirs.low <= ours.high
        claims = [s for s in [*said.gives_up, *said.gets] if "more class accuracy" in s or "less class accuracy" in s]
        seen.add(overlap)
        if overlap:
            assert not claims
            assert any(s.startswith("Class accuracy: " + NO_DIFFERENCE) for s in said.even)
        else:
            assert len(claims) == 1
    assert True in seen


def test_sentences_claim_a_difference_where_there_is_one(run):
    folders = [run("blackbox"), run("cbm", shift=-0.05)]
    found = compare(folders)
    said = balance(found.rows[1], found.rows[0], found.columns, [])
    (claim,) = [s for s in said.gives_up if "class accuracy" in s]
    assert claim.startswith("4.") or claim.startswith("5.")
    assert "less class accuracy" in claim
    assert any("Less accurate than Black box" in s for s in in_short(found.rows, found.rows[0], []))
    assert said.caveat


def test_sentences_about_corrections_and_concepts(found):
    base, curves = found.base("wbcatt"), curves_of(plain_rows(found.rows))

    def said(label):
        return balance(row(found, label), base, found.columns, curves)

    assert any("Correct answers hurt it" in s for s in said("CBM (sequential)").gives_up)
    assert any("A person can correct it" in s for s in said("CBM (independent)").gets)
    multitask = said("Multitask")
    assert any("changes nothing" in s for s in multitask.gives_up)
    assert not any("statements" in s for s in multitask.gets), "its concepts carry no decision"
    assert any("Says which concepts it saw" in s for s in multitask.gets)
    assert any("57 channels without a name" in s for s in said("CBM (hard)").gets)
    assert said("CBM (joint)").caveat == ""
    assert said("CBM (hard)").caveat


def test_concepts_that_do_not_carry_the_decision_are_named_so(run):
    folders = [run("blackbox"), run("cbm_side")]
    path = folders[1] / "evaluation" / "results.csv"
    records = read_records(path)
    for record in records:
        if record.metric == "explanation_size":
            record.value = 11.0
    write_records(path, records)
    found = compare(folders)
    said = balance(found.rows[1], found.rows[0], found.columns, [])
    assert any("do not carry nine tenths" in s for s in said.gives_up)


def test_concept_table_with_the_human_line(found):
    table = by_concept(plain_rows(found.rows))
    assert table.parts[0] == "nucleus_shape", "hardest first"
    assert len(table.parts) == 11
    assert table.rows[0].label == "Multitask", "the black box has no column"
    assert table.human[0].mean == pytest.approx(0.872)
    assert table.human[-1].mean == pytest.approx(0.956, abs=1e-3)
    assert len(table.human) == 12
    assert table.same[0].mean == pytest.approx(table.overall[0].mean - 0.012, abs=1e-6)


def test_condition_table_names_the_degradations(found):
    table = by_condition(plain_rows(found.rows))
    assert table.parts[0] == "Clean test images"
    assert {"Test images in grey", "Test images at 16 × 16 pixels"} < set(table.parts)
    assert "Without duplicates of training images" in table.parts


def test_two_runs_with_one_seed_are_two_models(run):
    found = compare([run("cbm", name="first"), run("cbm", name="second", shift=0.001)])
    assert [r.label for r in found.rows] == ["CBM (joint) (first)", "CBM (joint) (second)"]
    assert all(len(r.runs) == 1 for r in found.rows)


def test_models_on_two_backbones_are_held_against_their_own(run):
    folders = [run(p, backbone=b, name=f"{p}-{b}") for b in ("convnet", "resnet18") for p in ("blackbox", "cbm")]
    found = compare(folders)
    assert {r.label for r in found.rows} == {
        f"{t} on {b}" for t in ("Black box", "CBM (joint)") for b in ("convnet", "resnet18")
    }
    assert found.base("wbcatt", "resnet18").backbone == "resnet18"
    assert found.base("wbcatt", "vgg") is None


def test_two_data_sets_are_two_chapters(run, tmp_path):
    folders = [run(p, data=d, scopes=("all",)) for d in ("wbcatt", "flowers") for p in ("blackbox", "cbm")]
    found = compare(folders, tmp_path / "report")
    assert found.datasets == ["wbcatt", "flowers"]
    assert [r["data"] for r in found.table()] == ["wbcatt"] * 2 + ["flowers"] * 2
    text = found.path.read_text(encoding="utf-8")
    assert text.count('class="data"') == 2
    assert (tmp_path / "report" / "figures" / "pareto_flowers_explanation_size.png").is_file()


def test_presets_of_one_title_are_told_apart(run, fakes):
    from dataclasses import replace

    fake = replace(next(iter(fakes.values())), title="Same")
    found = compare([run("cbm", fake=fake), run("cbm_hard", fake=fake)])
    assert [r.label for r in found.rows] == ["Same [cbm]", "Same [cbm_hard]"]


def test_new_explainability_metrics_get_a_column(run):
    folders = [run("cbm"), run("cbm_hard")]
    for place, folder in enumerate(folders):
        path = folder / "evaluation" / "results.csv"
        records = read_records(path)
        first = records[0]
        about = {k: getattr(first, k) for k in ("run", "preset", "family", "data", "split", "seed")}
        records.append(Record(**about, scope="all", category="faithfulness", metric="deletion", value=0.2 + place / 10,
                              higher_is_better=False))  # fmt: skip
        write_records(path, records)
    found = compare(folders)
    column = next(c for c in found.columns if c.key == "deletion")
    assert (column.better, column.kind, column.explains) == ("lower", "share", True)
    assert "deletion" in {p.column.key for p in planes_of(found.rows, found.columns)}
    assert found.rows[0].cell("deletion").mean == pytest.approx(0.2)


def test_columns_pick_the_record_by_its_choices(found):
    runs = row(found, "CBM (joint)").runs
    for key, policy in (("intervention_area", "random"), ("intervention_area_uncertainty", "uncertainty")):
        column = next(c for c in COLUMNS if c.key == key)
        assert column.of(runs[0]).choices["policy"] == policy


def test_protocol_says_what_a_reader_needs(found):
    facts = dict(protocol(found.runs, found.rows, "vitrarium experiment bloodcells"))
    assert facts["Command"] == "vitrarium experiment bloodcells"
    assert "Black box: 0, 1, 2" in facts["Seeds"]
    assert facts["Truth of the concepts"].startswith("per image")
    assert "Some processor, 2 cores, 1 thread" in facts["Hardware"]
    assert "torch 2.14.1" in facts["Software"]
    assert "bootstrap" in facts["Intervals"]
    assert "Differences in settings" not in facts


def test_seeds_that_differ_in_more_than_the_seed_are_reported(run):
    import yaml

    folders = [run("cbm", 0), run("cbm", 1)]
    path = folders[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["train"]["lr"] = 0.1
    path.write_text(yaml.safe_dump(config))
    found = compare(folders)
    assert dict(protocol(found.runs, found.rows, None))["Differences in settings"] == (
        "the runs of CBM (joint) also differ in train.lr"
    )


def test_without_a_black_box_nothing_is_said_about_its_price(run, tmp_path):
    found = compare([run("cbm", scopes=())], tmp_path / "r")
    assert found.base("wbcatt") is None
    assert "nothing is said about the price" in found.path.read_text(encoding="utf-8")


def test_any_preset_can_be_the_baseline(run):
    found = compare([run("cbm_hard"), run("cbm")], baseline="cbm")
    assert found.rows[0].preset == "cbm"
    said = balance(found.rows[1], found.rows[0], found.columns, [])
    assert any("Concept accuracy" in s for s in said.even), "both have concepts, so they are compared"
    with pytest.raises(UserError, match="baseline"):
        compare([found.rows[0].runs[0].folder], baseline="nothing")


def test_many_classes_are_cut_to_the_hardest(run, tmp_path):
    folder = run("blackbox")
    path = folder / "evaluation" / "results.csv"
    records = read_records(path)
    about = {k: getattr(records[0], k) for k in ("run", "preset", "family", "data", "split", "seed")}
    records = [r for r in records if not r.scope.startswith("class:")]
    for place in range(60):
        records.append(Record(**about, scope=f"class:kind{place}", category="task", metric="accuracy",
                              value=0.3 + ((7 * place) % 60) / 100))  # fmt: skip
    write_records(path, records)
    found = compare([folder], tmp_path / "r")
    table = by_class(found.rows)
    means = [line[0].mean for line in table.cells]
    assert means == sorted(means)
    text = found.path.read_text(encoding="utf-8")
    assert text.count("<td>kind") == 40
    assert "And 20 more" in text
