"""The page and the files of a report."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.eval.records import read_records
from vitrarium.eval.report import compare
from vitrarium.eval.report.glossary import GLOSSARY
from vitrarium.eval.report.labels import Label, place
from vitrarium.eval.report.style import COLOURS, Palette, new_figure


@pytest.fixture(scope="module")
def report(experiment, tmp_path_factory):
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 1500, 3), dtype=np.uint8)).save(picture, "PNG")
    return compare(
        experiment,
        tmp_path_factory.mktemp("report"),
        title="Cells & <more>",
        about="About it.",
        examples=[{"title": "A monocyte", "png": {"cbm": picture.getvalue()}, "credit": "Image: somebody, CC BY"}],
        command="vitrarium experiment bloodcells",
        notes=["14 groups of exact duplicates."],
    )


@pytest.fixture(scope="module")
def text(report):
    return report.path.read_text(encoding="utf-8")


def test_page_needs_nothing_else(text):
    assert "<script" not in text
    assert "<link" not in text
    assert not re.search(r"(?:src|href)\s*=\s*(?![\"'](?:data:|#))", text)
    assert not re.search(r"https?://|@import|url\(", text)


def test_every_picture_opens(text):
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 5 + 6 + 1
    for picture in pictures:
        opened = Image.open(io.BytesIO(base64.b64decode(picture)))
        opened.load()
        assert opened.width <= 1240


def test_names_are_escaped(text):
    assert "Cells &amp; &lt;more&gt;" in text
    assert "<more>" not in text


def test_every_word_of_the_glossary_is_there(text):
    terms = {g.term for g in GLOSSARY}
    assert terms >= {
        "Class accuracy", "Concept accuracy", "Correcting a concept", "Area under the curve", "Explanation size",
        "Pareto front", "Seeds and intervals", "Black box", "Calibration error",
    }  # fmt: skip
    for entry in GLOSSARY:
        assert f"<dt>{entry.term}</dt>" in text
        assert entry.text.split(".")[0].replace("'", "&#39;") in text


def test_page_says_how_it_was_measured(text):
    for needed in (
        "research use, not a medical device".capitalize(), "vitrarium experiment bloodcells", "Some processor",
        "14 groups of exact duplicates.", "per image", "Image: somebody, CC BY", "cbm-wbcatt-2",
    ):  # fmt: skip
        assert needed in text


def test_page_shows_missing_numbers_as_dashes(text):
    line = re.search(r"<tr><td><span[^>]*></span>Black box <i>3 seeds</i></td>(.*?)</tr>", text, re.DOTALL).group(1)
    cells = re.findall(r"<td>(.*?)</td>", line, re.DOTALL)
    assert cells[1] == '<span class="none">\N{EN DASH}</span>'
    assert cells[0].startswith("<b>99.")
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower().replace("finance", "")


def test_page_flags_curves_that_fall(text):
    flagged = re.search(r'<p class="falls">(.*?)</p>', text).group(1)
    assert "CBM (sequential): falls from" in flagged
    assert "CBM (independent)" not in flagged


def test_files_of_a_report(report, experiment):
    folder = report.path.parent
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "index.html", "results.csv", "table.csv"]
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert {"pareto_concept_accuracy.png", "curve_all_random.png", "curve_pixels16_uncertainty.png"} <= figures
    assert len(figures) == 5 + 6
    records = read_records(folder / "results.csv")
    assert len(records) == sum(len(read_records(f / "evaluation" / "results.csv")) for f in experiment)
    assert len({r.run for r in records}) == len(experiment)


def test_a_second_report_replaces_the_first(run, tmp_path):
    out = tmp_path / "out"
    compare([run("cbm", scopes=("all",))], out)
    (out / "figures" / "mine.png").write_bytes(b"")
    assert (out / "figures" / "curve_all_random.png").is_file()
    compare([run("blackbox")], out)
    assert [p.name for p in (out / "figures").iterdir()] == ["mine.png"], "what is no longer true is gone"


def test_a_place_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        compare([run("blackbox")], tmp_path / "file" / "report")


def test_a_single_model_makes_a_page(run, tmp_path):
    text = compare([run("blackbox")], tmp_path / "one").path.read_text(encoding="utf-8")
    assert "The table" in text
    assert "Accuracy against explanation</h2>" not in text


def test_colours_follow_the_preset_and_not_the_model_count():
    palette = Palette(["cbm", "blackbox", "cbm", "cbm_hard"], "blackbox")
    assert palette.colours["cbm"] == COLOURS[0]
    assert palette.colours["cbm_hard"] == COLOURS[1]
    assert palette.colours["blackbox"] not in COLOURS
    assert len(set(palette.markers.values())) == 3


def test_labels_of_points_keep_clear_of_each_other():
    rng = np.random.default_rng(1)
    _, axes = new_figure()
    points = rng.normal(0.5, 0.06, (9, 2))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    boxes = place(axes, [Label(x, y, f"a model named {i}", "#000000") for i, (x, y) in enumerate(points)], [])
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            assert wide <= 0.5 or high <= 0.5, "two labels share ground"
    frame = axes.get_window_extent()
    assert all(b[0] >= frame.x0 - 1 and b[2] <= frame.x1 + 1 for b in boxes)
