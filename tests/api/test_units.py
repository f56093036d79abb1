"""Units of a run, shown and named, in Python and at the terminal."""

import json
import shutil

import pytest

import vitrarium as vt
from vitrarium.cli import main
from vitrarium.models.prototypes.journal import digest

SMALL = {"name": "flowers", "train": 12, "val": 12, "test": 12, "size": 32}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("units") / "run"
    vt.fit("model=blackbox", *tiny, "train.epochs=1", out=folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_data(monkeypatch):
    """Whoever asks for the data of a run is told that they are gone."""

    def gone(self):
        raise vt.UserError("the data are gone")

    monkeypatch.setattr(vt.Run, "source", property(gone))


def names(run):
    return vt.load(run).evidence.units.names


def test_a_name_needs_no_data_and_changes_no_answer(run, no_data):
    before, threshold = digest(vt.load(run)), vt.load(run).abstention
    editor = vt.edit(run, name={"channel_1": "dark rim", "channel_3": "Schnörkel 2"})
    assert names(run)[:4] == ("channel_0", "dark rim", "channel_2", "Schnörkel 2")
    assert digest(vt.load(run)) == before
    assert vt.load(run).abstention == threshold
    entry = editor.journal.entries[0]
    assert entry.edit == {"name": "name", "unit": "channel_1", "to": "dark rim"}
    assert (entry.before, entry.after, entry.refit) == (None, None, False)
    vt.edit(run).undo()
    assert names(run)[:4] == ("channel_0", "dark rim", "channel_2", "channel_3")
    vt.edit(run).undo()
    assert names(run) == editor.journal.unit_names
    assert digest(vt.load(run)) == before


def test_either_all_names_are_given_or_none(run, monkeypatch):
    import vitrarium.editing

    editor, before = vt.edit(run), names(run)
    with pytest.raises(vt.UserError, match="name of another channel"):
        editor.name({"channel_1": "dark rim", "channel_2": "dark rim"})
    assert editor.model.evidence.units.names == names(run) == before
    assert not editor.journal.entries

    def full(*given):
        raise vt.UserError("the disk is full", "free some space")

    monkeypatch.setattr(vitrarium.editing, "rewrite_weights", full)
    with pytest.raises(vt.UserError, match="disk is full"):
        editor.name({"channel_1": "dark rim"})
    assert editor.model.evidence.units.names == names(run) == before


def test_names_are_replayed(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "other")
    vt.edit(run, name={"channel_1": "dark rim"}).name({"dark rim": "rim"})
    vt.edit(tmp_path / "other").replay(run)
    assert names(tmp_path / "other") == names(run)
    with pytest.raises(vt.UserError, match="edits channel_1, which this model does not have"):
        vt.edit(tmp_path / "other").replay(run)


def test_names_at_the_terminal(run, capsys, tmp_path):
    assert main(["edit", str(run), "--name", "channel_1=dark rim", "--name", "channel_2=halo"]) == 0
    assert "channel_1 is now called dark rim" in capsys.readouterr().out
    assert main(["edit", str(run), "name", "channel_3", "to=bright spot"]) == 0
    assert names(run)[1:4] == ("dark rim", "halo", "bright spot")
    assert main(["edit", str(run), "log"]) == 0
    assert "to=bright spot" in capsys.readouterr().out
    image = tmp_path / "flower.png"
    assert main(["data", "example", "flowers", "size=32", "train=12", "val=12", "test=12", "-o", str(image)]) == 0
    assert main(["predict", str(run), str(image), "--do", "dark rim=score:0.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told["units"]["dark rim"] == pytest.approx(0.5)
    assert told["corrected"] == ["dark rim"]
    assert main(["explain", str(run), str(image), "-o", str(tmp_path / "why.json")]) == 0
    assert "dark rim" in (tmp_path / "why.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "dark rim"], "say which unit"),
        (["--name", "chanel_1=rim"], "unknown channel 'chanel_1'"),
        (["--name", "channel_1="], "neither begins nor ends"),
        (["--name", "channel_1=a", "--name", "channel_1=b"], "given two names"),
        (["remove", "channel_1", "--name", "channel_1=a"], "two commands"),
        ([], "nothing is said to be edited"),
        (["name", "channel_1"], "needs the option 'to'"),
        (["remove", "channel_1"], "units that are prototypes"),
    ],
)
def test_refusals_at_the_terminal(run, capsys, words, message):
    assert main(["edit", str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_annotated_concepts_keep_their_names(tiny_run, capsys):
    assert main(["edit", str(tiny_run.folder), "--name", "petal_colour=red=crimson"]) == 2
    assert "'petal_colour=red' is an annotated concept" in capsys.readouterr().err


def test_units_at_the_terminal(run, capsys, tmp_path):
    vt.edit(run, name={"channel_1": "dark rim"})
    assert main(["units", str(run), "--top", "2", "--only", "dark rim", "channel_[23]", "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "3 units in 1 rooms: channels" in said
    assert "each channel with the 2 of 24 images of the validation split" in said
    assert {p.name for p in (run / "units").iterdir()} == {"gallery.html", "gallery.png", "images.csv"}
    page = (run / "units" / "gallery.html").read_text()
    assert "<h3>dark rim</h3>" in page
    assert main(["units", str(run), "--limit", "1", "--where", "heat", "-o", str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "images.csv").read_text().count("\n") == 9
    assert main(["units", str(run), "--only", "dark rims"]) == 2
    assert "did you mean 'dark rim'" in capsys.readouterr().err


def test_galleries_of_models_and_runs(run, tiny_run):
    assert len(vt.gallery(run, top=1).rooms[0][1]) == 8
    assert "training split" in vt.gallery(vt.Run(run), top=1).notes[0]
    model = vt.load(run)
    with pytest.raises(vt.UserError, match="channels are shown by images, and the model alone has none"):
        vt.gallery(model)
    small = SMALL
    assert len(vt.gallery(model, data=small, top=1, only="channel_2").rooms[0][1]) == 1
    assert "of 12 images of the test split" in vt.gallery(run / "model", "test", top=1, data=small).notes[0]
    with pytest.raises(vt.UserError, match="did you mean 'train'"):
        vt.gallery(run, split="trian")


def test_prototypes_hang_without_data_and_with_images_of_a_split():
    model = vt.build(SMALL, {"name": "convnet", "widths": (8, 8)}, {"name": "softmax_channels", "picture": 16}, seed=0)
    alone = vt.gallery(model.eval())
    assert not alone.in_rows
    assert sum(len(exhibits) for _, exhibits in alone.rooms) == 8
    shown = vt.gallery(model, split="train", data=SMALL, top=2, limit=3)
    assert shown.in_rows
    assert [len(exhibits) for _, exhibits in shown.rooms] == [3]
    with pytest.raises(vt.UserError, match="prototypes are shown by images"):
        vt.gallery(model, split="train")
