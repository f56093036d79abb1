"""The gallery of any units, against a plain look at all images."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data import build_source
from vitrarium.data.concepts import ConceptSet
from vitrarium.data.module import DataModule
from vitrarium.eval.gallery.drawing import BOX, seen_at
from vitrarium.eval.gallery.facts import SHARED
from vitrarium.eval.gallery.units import choose_units, unit_gallery
from vitrarium.models import build
from vitrarium.showing import write_gallery

CONVNET = {"name": "convnet", "widths": (8, 8)}
EVIDENCES = {
    "features": "features",
    "concepts": "concepts",
    "prototypes": {"name": "prototypes", "per_class": 1, "picture": 16, "part": 2},
    "softmax_channels": {"name": "softmax_channels", "threshold": 0.0},
}


@pytest.fixture(scope="module")
def data():
    source = build_source({"name": "flowers", "train": 32, "val": 12, "test": 12, "size": 32})
    return DataModule(source, batch_size=10, cache_folder="memory")


def make(data, evidence, readout="linear"):
    spec = {"backbone": CONVNET, "evidence": EVIDENCES.get(evidence, evidence), "readout": readout}
    return build(spec, data.source.class_names, data.source.concepts, seed=0).eval()


def hang(model, data, split="train", **options):
    return unit_gallery(model, data.loader(split), data.split(split), split, **options)


def all_exhibits(gallery):
    return {e.unit: e for _, exhibits in gallery.rooms for e in exhibits}


@pytest.mark.parametrize("evidence", EVIDENCES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_each_unit_has_the_images_it_is_most_active_on(data, evidence, split):
    model = make(data, evidence)
    gallery = hang(model, data, split, top=3)
    examples = data.split(split)
    images = torch.stack([torch.tensor(examples.sample(i).image) for i in range(len(examples))])
    with torch.no_grad():
        active = model(images.permute(0, 3, 1, 2).float() / 255).evidence.activations
    shown, names = all_exhibits(gallery), model.evidence.units.names
    assert set(shown) == set(names)
    for m, name in enumerate(names):
        column = active[:, m].tolist()
        expected = sorted(range(len(column)), key=lambda i, column=column: (-column[i], i))[:3]
        tiles = [t for t in shown[name].tiles if t.kind == "image"]
        if max(column) - min(column) < 1e-5:
            continue
        # Where two images are as good as equal, rounding decides.
        assert [column[t.index] for t in tiles] == pytest.approx([column[i] for i in expected], abs=1e-5)
        assert [t.activation for t in tiles] == pytest.approx([column[t.index] for t in tiles], abs=1e-5)
        assert [t.label for t in tiles] == [data.source.class_names[examples.labels[t.index]] for t in tiles]
    words = {"train": "training", "val": "validation"}[split]
    assert f"of {len(examples)} images of the {words} split" in gallery.notes[0]


def test_weights_are_those_of_the_readout_or_left_out(data):
    model = make(data, "features")
    exhibit = all_exhibits(hang(model, data, top=1))["channel_5"]
    column = model.readout.linear.weight[:, 5].tolist()
    order = sorted(range(len(column)), key=lambda c: -abs(column[c]))[:3]
    assert [w for _, w in exhibit.weights] == pytest.approx([column[c] for c in order])
    assert [n for n, _ in exhibit.weights] == [model.class_names[c] for c in order]
    without = all_exhibits(hang(make(data, "features", "mlp"), data, top=1))["channel_5"]
    assert (without.weights, without.speaks) == ([], "")


def test_only_and_limit_choose(data):
    model = make(data, "features")
    assert choose_units(model, ["channel_3", "channel_[01]"]) == [0, 1, 3]
    gallery = hang(model, data, top=1, limit=2)
    largest = model.readout.linear.weight.abs().amax(0)
    expected = sorted(largest.argsort(descending=True)[:2].tolist())
    assert list(all_exhibits(gallery)) == [f"channel_{m}" for m in expected]
    assert "2 of 8 channels: those with the largest weight" in gallery.notes[1]
    assert list(all_exhibits(hang(make(data, "features", "mlp"), data, top=1, limit=2))) == ["channel_0", "channel_1"]
    # A name that looks like a pattern is a name first.
    model.evidence.call_units(["channel_*", *model.evidence.units.names[1:]])
    assert choose_units(model, ["channel_*"]) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"limit": 0}, "limit=0"),
        ({"where": "countour"}, "did you mean 'contour'"),
        ({"only": ["chanel_3"]}, "no living channel 'chanel_3'.*did you mean"),
    ],
)
def test_refusals(data, options, message):
    with pytest.raises(UserError, match=message):
        hang(make(data, "features"), data, **options)


def test_activations_that_are_not_numbers_and_no_images_are_refused(data):
    model = make(data, "features")
    with pytest.raises(UserError, match="no images"):
        unit_gallery(model, [], data.split("train"))
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        hang(model, data)


def test_rooms_are_groups_classes_or_one(data):
    assert [name for name, _ in hang(make(data, "features"), data, top=1).rooms] == ["channels"]
    groups = [g.name.replace("_", " ") for g in data.source.concepts.groups if len(g.members) > 1]
    rooms = [name for name, _ in hang(make(data, "concepts"), data, top=1).rooms]
    assert [name for name in rooms if name != "yes or no"] == groups
    prototypes = make(data, "prototypes", "class_connected")
    assert [name for name, _ in hang(prototypes, data, top=1).rooms] == list(data.source.class_names)
    assert [name for name, _ in hang(make(data, "softmax_channels"), data, top=1).rooms] == [SHARED]


def test_a_prototype_shows_its_source_before_its_images(data):
    model = make(data, "prototypes", "class_connected")
    sources = model.evidence.sources
    sources.index[0], sources.label[0], sources.picture[0] = 3, 1, 120
    shown = all_exhibits(hang(model, data, top=2))
    assert [t.kind for t in shown["prototype_0"].tiles] == ["source", "image", "image"]
    assert shown["prototype_0"].tiles[0].caption == (f"source: {model.class_names[1]}", "image 3")
    assert [t.kind for t in shown["prototype_1"].tiles] == ["image", "image"]


def test_what_the_evidence_can_draw_hangs_first(data):
    model = make(data, "features")

    def decode_units(units, size):
        return (units / 10)[:, None, None, None].expand(-1, 3, *size)

    model.evidence.decode_units = decode_units
    shown = all_exhibits(hang(model, data, top=1, only=["channel_2", "channel_7"]))
    for m in (2, 7):
        first = shown[f"channel_{m}"].tiles[0]
        assert first.kind == "decoded"
        assert np.unique(first.picture).tolist() == [round(255 * m / 10)]


def test_why_a_unit_could_not_be_drawn_is_said(data):
    model = make(data, "features")

    def decode_units(units, size):
        raise UserError("there is no decoder", "train one")

    model.evidence.decode_units = decode_units
    assert "not drawn by the model: there is no decoder" in hang(model, data, top=1).notes[-1]


def test_a_constant_unit_has_no_images_and_nobody_shows_a_silent_one(data):
    model = make(data, "features")
    plain = model.evidence.forward

    def dulled(features):
        evidence = plain(features)
        evidence.activations = evidence.activations.clone()
        evidence.activations[:, 0] = 0.25
        # On all but one image of a batch it is at its lowest.
        evidence.activations[:, 1] = 0.0
        evidence.activations[0, 1] = 1.0
        return evidence

    model.evidence.forward = dulled
    shown = all_exhibits(hang(model, data, top=8))
    assert shown["channel_0"].tiles == []
    assert shown["channel_0"].said == ["the same on every image: 0.25"]
    # 32 images in batches of 10 are 4 batches.
    assert [t.index for t in shown["channel_1"].tiles] == [0, 10, 20, 30]


def test_units_without_maps_say_so(data):
    model = make(data, "features")
    plain = model.evidence.forward
    model.evidence.forward = lambda features: plain(features).without_maps()
    gallery = hang(model, data, top=1)
    assert "channels have no maps: where is unknown" in gallery.notes
    assert gallery.legend == []


@pytest.mark.parametrize("where", ["contour", "heat", "box"])
def test_places_are_drawn_where_the_map_is_high(where):
    unit_map = np.zeros((4, 4), np.float32)
    unit_map[0, 3] = 1.0
    plain = np.full((16, 16, 3), 200, np.uint8)
    drawn = seen_at(plain, unit_map, None, where, 80)
    changed = (drawn != 200).any(2) if where != "heat" else drawn[..., 2] < drawn[..., 0] - 60
    rows, columns = changed.nonzero()
    # The top right quarter of the picture, and nothing else.
    assert rows.max() < 40 <= columns.min()
    assert (seen_at(plain, np.ones((4, 4), np.float32), None, where, 80) == 200).all()
    if where != "heat":
        assert (drawn == BOX).all(2).any()


def test_maps_of_parts_lie_in_the_middle_of_the_grid():
    """A 3 x 3 map over a grid of 5 x 5: its middle is that of the image, its corner is not the image's corner."""
    unit_map = np.zeros((3, 3), np.float32)
    unit_map[1, 1] = 1.0
    drawn = (seen_at(np.full((8, 8, 3), 90, np.uint8), unit_map, (5, 5), "box", 100) == BOX).all(2)
    rows, columns = drawn.nonzero()
    assert 35 < rows.min() < rows.max() < 65
    assert 35 < columns.min() < columns.max() < 65


def test_files(data, tmp_path):
    gallery = hang(make(data, "concepts"), data, top=2, title="Concepts <of> flowers", credit=data.source.pictures)
    write_gallery(gallery, tmp_path / "units")
    assert {p.name for p in (tmp_path / "units").iterdir()} == {"gallery.html", "gallery.png", "images.csv"}
    page = (tmp_path / "units" / "gallery.html").read_text()
    tiles = sum(len(e.tiles) for e in all_exhibits(gallery).values())
    assert page.count("<figure>") == tiles
    assert page.count('<section class="row">') == len(gallery.rooms and all_exhibits(gallery))
    assert "Concepts &lt;of&gt; flowers" in page
    assert "http" not in page.replace("http-equiv", "")
    with (tmp_path / "units" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == tiles
    assert rows[0]["rank"] == "1"
    picture = Image.open(tmp_path / "units" / "gallery.png")
    # The column of names, two tiles between margins, but room for the heading.
    assert picture.width == 48 + 4 * 160 + 3 * 10
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_gallery(gallery, tmp_path / "file")


def test_free_axes_have_a_room_of_their_own(data):
    from dataclasses import replace

    from vitrarium.models.units import UnitTable

    model = make(data, "features")
    concepts = ConceptSet.categorical({"colour": ("red", "blue"), "thorns": ()})
    table = UnitTable.with_free(concepts, "axis", 8)
    model.evidence._units = replace(table, alive=torch.ones(8, dtype=torch.bool))
    rooms = hang(model, data, top=1).rooms
    assert [name for name, _ in rooms] == ["colour", "yes or no", "free axes"]
