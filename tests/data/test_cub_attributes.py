"""Concepts of the CUB layout: votes, the 312 -> 112 selection, certainty, groups, matrices of classes."""

from __future__ import annotations

import numpy as np
import pytest
from builders import sample_of
from cub_builder import ATTRIBUTES, build, rows_of, write_cub, write_lines

from vitrarium.configs.errors import UserError

MANY = tuple(f"group{k // 5}::value{k}" for k in range(40))


def released(present, certainty, labels, voters, classes, min_classes):
    """The rule in words, one annotation after the other, with the quirks of argmax and argmin spelt out."""
    majority = [[0] * present.shape[1] for _ in range(classes)]
    for c in range(classes):
        for a in range(present.shape[1]):
            count = [0, 0]
            for n in range(len(labels)):
                if labels[n] != c or not voters[n]:
                    continue
                if present[n, a] == 0 and certainty[n, a] == 1:
                    continue
                count[present[n, a]] += 1
            majority[c][a] = 1 if count[1] >= count[0] else 0
    mask = [a for a in range(present.shape[1]) if sum(majority[c][a] for c in range(classes)) >= min_classes]
    return np.array(majority), mask


def voters_of(source, written, *names):
    rows, voters = rows_of(source, written), np.zeros(len(written.files), bool)
    for name in names:
        voters[rows[name]] = True
    return voters


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("voters", "splits"), [("train", ["train"]), ("train_val", ["train", "val"])])
def test_the_selection_is_the_released_one(tmp_path, seed, voters, splits):
    written = write_cub(
        tmp_path, classes=12, per_class=6, attributes=MANY, seed=seed, parts=(), boxes=False, segmentations=False
    )
    options = {"attributes": "koh112", "min_classes": 7, "voters": voters}
    source = build(tmp_path, truth="class", **options)
    voting = voters_of(source, written, *splits)
    majority, mask = released(written.present, written.certainty, written.labels, voting, 12, 7)
    assert 3 < len(mask) < 37
    names = [MANY[a].replace("::", "=") for a in mask]
    assert list(source.concepts.names) == names
    assert source.concepts.per_class
    for name, rows in rows_of(source, written).items():
        made = source.splits[name].truth
        expected = majority[written.labels[rows]][:, mask].astype(float)
        assert np.array_equal(np.where(np.isnan(made), expected, made), expected)
        assert np.isnan(made).mean() < 0.2
    each = build(tmp_path, **options, uncertain="ignore")
    assert not each.concepts.per_class
    assert list(each.concepts.names) == names
    for name, rows in rows_of(each, written).items():
        made, expected = each.splits[name].truth, written.present[rows][:, mask]
        assert np.array_equal(np.where(np.isnan(made), expected, made), expected)


def test_ties_and_the_invisible_count_as_the_released_processing_counts_them(tmp_path):
    names = ("a::tie", "a::never", "b::invisible", "b::seldom", "c")
    written = write_cub(tmp_path, classes=3, per_class=6, attributes=names, parts=(), boxes=False, segmentations=False)
    present = np.zeros((18, 5), int)
    certainty = np.full((18, 5), 4)
    number = np.arange(18) % 6
    present[:, 0] = number < 2
    certainty[number >= 4, 0] = 1
    present[:, 2], certainty[:, 2] = 0, 1
    present[:, 3] = written.labels == 0
    present[:, 4] = 1
    certainty[:, 4] = 1
    write_lines(
        written.place / "attributes" / "image_attribute_labels.txt",
        [(i, a + 1, present[n, a], certainty[n, a], 1.0) for n, i in enumerate(written.ids) for a in range(5)],
    )
    # Of each class vote five images, about the first attribute 2 yes and 2 no; the fifth cannot see it.
    source = build(tmp_path, truth="class", attributes="koh112", min_classes=3, voters="train_val")
    assert source.concepts.names == ("a=tie", "b=invisible", "c")
    assert all((split.truth == 1).all() for split in source.splits.values())
    assert "3 pairs of class and attribute have no vote: present, as in the released processing" in source.notes
    # Without the selection nobody knows what nobody could see.
    whole = build(tmp_path, truth="class", voters="train_val")
    truth = whole.splits["test"].truth
    assert whole.concepts.names == ("a=tie", "a=never", "b=invisible", "b=seldom", "c")
    assert np.isnan(truth[:, 2]).all()
    assert truth[:, 3].tolist() == (whole.splits["test"].labels == 0).astype(float).tolist()
    with pytest.raises(UserError, match=r"koh112 keeps none of the 5 attributes.*lower data\.min_classes"):
        build(tmp_path, attributes="koh112", min_classes=4)


def test_concepts_of_classes_are_votes_and_soft_ones_their_share(tmp_path):
    written = write_cub(tmp_path, per_class=9, seed=3)
    source = build(tmp_path, truth="class", uncertain="soft")
    voting = voters_of(source, written, "train")
    for name, rows in rows_of(source, written).items():
        for index, row in enumerate(rows):
            mine = voting & (written.labels == written.labels[row])
            for a in range(len(ATTRIBUTES)):
                seen = mine & ~((written.present[:, a] == 0) & (written.certainty[:, a] == 1))
                share = written.present[seen, a].mean()
                assert source.splits[name].truth[index, a] == pytest.approx(share, abs=1e-6)
    hard = build(tmp_path, truth="class", threshold=0.4)
    for name in source.splits:
        made, share = hard.splits[name].truth, source.splits[name].truth
        assert np.array_equal(made[:, 3:], (share >= np.float32(0.4)).astype(np.float32)[:, 3:])
    assert "by the votes of its train images" in " ".join(source.notes)


def test_certainty_becomes_weight_degree_or_nothing(tmp_path):
    written = write_cub(tmp_path, seed=1)
    weight, soft, plain = (build(tmp_path, uncertain=u) for u in ("weight", "soft", "ignore"))
    assert build(tmp_path).fingerprint == weight.fingerprint
    degree = {1: {2: 0.5, 3: 0.75, 4: 1.0}, 0: {2: 0.5, 3: 0.25, 4: 0.0}}
    counts = {1: 0.0, 2: 0.5, 3: 0.75, 4: 1.0}
    for row, file in enumerate(written.files):
        one, two, three = (sample_of(source, f"images/{file}") for source in (weight, soft, plain))
        assert two.concept_weight is three.concept_weight is None
        for a in range(len(ATTRIBUTES)):
            p, c = int(written.present[row, a]), int(written.certainty[row, a])
            assert one.concept_weight[a] == counts[c]
            if c == 1:
                assert np.isnan(one.concepts[a])
                assert np.isnan(two.concepts[a])
            else:
                assert one.concepts[a] == p
                assert two.concepts[a] == degree[p][c]
            # Groups that cannot be seen have no value, so the group of which one is true is none without certainty.
            assert three.concepts[a] == p
    assert [g.categorical for g in weight.concepts.groups] == [True, False, False]
    assert [g.categorical for g in soft.concepts.groups] == [False, False, False]
    assert [g.categorical for g in plain.concepts.groups] == [False, False, False]


def test_groups_are_asked_for_together(tmp_path):
    write_cub(tmp_path)
    concepts = build(tmp_path).concepts
    assert [g.name for g in concepts.groups] == ["has_bill_shape", "has_wing_color", "sings"]
    assert concepts.names == tuple(a.replace("::", "=") for a in ATTRIBUTES)
    assert concepts.answer("has_bill_shape", "dagger") == {0: 1.0, 1: 0.0, 2: 0.0}
    assert concepts.answer("has_wing_color", "blue+white") == {3: 1.0, 4: 0.0, 5: 1.0}
    assert concepts.answer("has_wing_color=red", "no") == {4: 0.0}


def test_interleaved_groups_are_brought_together(tmp_path):
    names = ("a::1", "b", "a::2", "c::1", "a::3", "d::", "::e")
    written = write_cub(tmp_path, attributes=names, parts=(), boxes=False, segmentations=False)
    source = build(tmp_path, uncertain="ignore")
    assert source.concepts.names == ("a=1", "a=2", "a=3", "b", "c=1", "d::", "::e")
    assert [len(g.members) for g in source.concepts.groups] == [3, 1, 1, 1, 1]
    order = [0, 2, 4, 1, 3, 5, 6]
    for name, rows in rows_of(source, written).items():
        assert np.array_equal(source.splits[name].truth, written.present[rows][:, order])


def test_few_images_without_exactly_one_value_are_unknown_in_that_group(tmp_path):
    names = ("beak::a", "beak::b")
    written = write_cub(
        tmp_path, classes=10, per_class=20, attributes=names, size=(8, 8), parts=(), boxes=False, segmentations=False
    )
    present = np.stack([np.arange(200) % 2, 1 - np.arange(200) % 2], axis=1)
    present[7] = 1

    def write(spoilt):
        values = present.copy()
        values[:spoilt] = 0
        write_lines(
            written.place / "attributes" / "image_attribute_labels.txt",
            [(i, a + 1, values[n, a], 4, 1.0) for n, i in enumerate(written.ids) for a in range(2)],
        )

    write(1)
    source = build(tmp_path)
    assert source.concepts.groups[0].categorical
    assert "2 images without exactly one value of 'beak' are unknown in this group" in source.notes
    for row in (0, 7):
        assert np.isnan(sample_of(source, f"images/{written.files[row]}").concepts).all()
    write(2)
    assert not build(tmp_path).concepts.groups[0].categorical


@pytest.mark.parametrize(("scale", "words"), [(100, "percentages"), (1, "shares from 0 to 1"), (None, "0 and 1")])
def test_a_matrix_of_classes_alone_is_enough(tmp_path, scale, words):
    names = ("black", "white", "has tail", "quadrupedal", "fierce")
    written = write_cub(tmp_path, classes=20, attributes=names, class_level_only=True)
    share = np.random.default_rng(2).random((20, 5)).round(3)
    share[0] = [0.5, 0.4999, 0, 1, 0.25]
    table = share * scale if scale else (share >= 0.5).astype(int)
    table[3, 1] = table[4, 0] = -1
    write_lines(written.place / "attributes" / "class_attribute_labels_continuous.txt", table.tolist())
    source = build(tmp_path)
    assert source.concepts.per_class
    assert source.concepts.names == names
    assert all(not g.categorical for g in source.concepts.groups)
    expected = (share >= 0.5).astype(np.float32)
    expected[3, 1] = expected[4, 0] = np.nan
    for split in source.splits.values():
        assert np.array_equal(split.truth, expected[split.labels], equal_nan=True)
        assert split.sample(0).concept_weight is None
    note = next(note for note in source.notes if "continuous" in note)
    assert f"was read as {words}, with 2 unknown values (-1), present from 0.5" in note
    degrees = build(tmp_path, uncertain="soft").splits["train"]
    known = ~np.isnan(expected)
    assert np.allclose(
        degrees.truth, np.where(known, share if scale else expected, np.nan)[degrees.labels], atol=1e-6, equal_nan=True
    )
    assert build(tmp_path, attributes="koh112", min_classes=9).concepts.names == tuple(
        name for name, count in zip(names, np.nansum(expected, 0), strict=True) if count >= 9
    )


def test_options_that_do_not_fit_are_refused(tmp_path):
    write_cub(tmp_path / "both")
    write_cub(tmp_path / "classes", class_level_only=True)
    write_cub(tmp_path / "none", attributes=())
    for root, options, words in (
        ("both", {"truth": "clas"}, "no truth 'clas'; did you mean 'class'"),
        ("both", {"attributes": "koh"}, "no attributes 'koh'"),
        ("both", {"uncertain": "maybe"}, "no uncertain 'maybe'"),
        ("both", {"voters": "test"}, "no voters 'test'"),
        ("both", {"min_classes": 0}, "min_classes=0"),
        ("both", {"threshold": 50}, "threshold=50"),
        ("both", {"truth": "class", "uncertain": "weight"}, "uncertain=weight needs the certainty of single images"),
        ("both", {"min_classes": 3}, "min_classes changes nothing here; it needs attributes=koh112"),
        ("both", {"voters": "train_val"}, "voters changes nothing"),
        ("both", {"threshold": 0.4}, "threshold changes nothing"),
        ("both", {"margin": 0.1}, "margin changes nothing here; it needs crop=true"),
        ("classes", {"truth": "instance"}, r"truth=instance needs attributes/image_attribute_labels\.txt"),
        ("classes", {"voters": "train_val"}, "voters changes nothing"),
        ("none", {"truth": "class"}, "has no labels of attributes, but options about them are set"),
        ("both", {"size": 0}, "size=0"),
        ("both", {"split_seed": -1}, "split_seed=-1"),
        ("both", {"crop": "yes"}, "crop='yes'"),
        ("both", {"crop": True, "margin": -1}, "margin=-1"),
        ("both", {"val_fraction": 1}, "val_fraction is 1"),
    ):
        with pytest.raises(UserError, match=words):
            build(tmp_path / root, **options)
