"""From the files of CIFAR-10 and GTSRB to a trained and measured model, by their presets."""

from __future__ import annotations

import pytest
from archives import write_cifar10, write_packed_signs
from builders import write_csv

import vitrarium as vt


@pytest.fixture
def quick(tiny):
    """Overrides of a run that takes a second, without those of the flowers."""
    own = [t for t in tiny if not t.startswith("data.")]
    return [*own, "train.epochs=1", "data.size=16", "cache.folder=memory"]


def test_signs(quick, tmp_path):
    write_packed_signs(tmp_path / "signs")
    rows = [(0, "twenty", 1, 0, 1), (1, "thirty", 1, 0, 0), (14, "halt", 0, 1, 1)]
    write_csv(tmp_path / "signs" / "class_concepts.csv", ("class_id", "class_name", "shape_a", "shape_b", "red"), rows)
    run = vt.fit("model=cbm", "data=gtsrb", f"data.root={tmp_path / 'signs'}", *quick, out=tmp_path / "run")
    measured = vt.evaluate(run)
    assert 0 <= measured.value("accuracy") <= 1
    assert {record.scope for record in measured.records} >= {"all", "grey", "pixels16"}
    model = vt.load(run.folder)
    assert model.concepts.per_class
    assert model.concepts.names == ("shape=a", "shape=b", "red")


def test_small_photographs(quick, tmp_path):
    write_cifar10(tmp_path / "cifar")
    root = f"data.root={tmp_path / 'cifar'}"
    run = vt.fit("model=blackbox", "data=cifar10", root, *quick, out=tmp_path / "run")
    assert 0 <= vt.evaluate(run).value("accuracy") <= 1
    with pytest.raises(vt.UserError, match="needs a data set with concepts"):
        vt.fit("model=cbm", "data=cifar10", root, *quick, out=tmp_path / "other")
