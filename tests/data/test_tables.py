"""Tables that users write: read line by line, and what is wrong with them told with line, encoding and cure."""

from __future__ import annotations

import tracemalloc
import unicodedata

import numpy as np
import pytest
from builders import FOLDER_FILES, build_folder, places, sample_of, write_csv, write_folder, write_image

from vitrarium.configs.errors import UserError
from vitrarium.data.concept_columns import MAX_VALUES
from vitrarium.data.naming import ImageNames, Names
from vitrarium.data.sets.folder_concepts import read_known
from vitrarium.data.sets.folder_keypoints import read_keypoints
from vitrarium.data.sets.folder_layout import Layout
from vitrarium.data.tables import open_table, read_table

LONG = 100_000


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Tables of 100,000 images in ten classes, and the layout they are about; there are no image files."""
    root = tmp_path_factory.mktemp("long")
    files = [f"class{i % 10}/{i:06d}.jpg" for i in range(LONG)]
    layout = Layout(files, np.arange(LONG) % 10, tuple(f"class{c}" for c in range(10)), None)
    with (root / "concepts.csv").open("w") as file:
        file.write("image,split,a,degree,colour\n")
        for i, name in enumerate(files):
            split, colour = ("train", "val", "test")[i % 3], ("red", "green", "", "blue")[i % 4]
            file.write(f"{name},{split},{i % 2},{i / LONG:.6f},{colour}\n")
    with (root / "keypoints.csv").open("w") as file:
        file.write("image,part,x,y\n")
        file.writelines(f"{name},{('tail', 'head')[i % 2]},{i % 50}.5,{i % 40}\n" for i, name in enumerate(files))
    return root, layout


def peak_of(call):
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_long_tables_take_the_memory_of_what_is_kept(long):
    root, layout = long
    _, floor = peak_of(lambda: ImageNames(layout.files).find(layout.files[0]))
    known, peak = peak_of(lambda: read_known(root, layout))
    # 3 columns of 8 bytes, an index, a line, a split, 5 values of truth; a dict for each row alone would take 300.
    assert peak - floor < 130 * LONG
    assert known.concepts.names == ("a", "degree", "colour=blue", "colour=green", "colour=red")
    assert known.splits[:4] == ["train", "val", "test", "train"]
    assert known.truth[:3, 0].tolist() == [0, 1, 0]
    assert known.truth[LONG // 2, 1] == 0.5
    assert known.truth[3].tolist()[2:] == [1, 0, 0]
    assert np.isnan(known.truth[2, 2:]).all()
    assert known.lines[-1] == LONG + 1
    keypoints, peak = peak_of(lambda: read_keypoints(root / "keypoints.csv", layout))
    assert peak - floor < 190 * LONG
    assert keypoints.parts == ("head", "tail")
    assert keypoints.points[:2].tolist() == [[[0, 0, 0], [0.5, 0, 1]], [[1.5, 1, 1], [0, 0, 0]]]
    assert keypoints.lines[LONG - 1].tolist() == [LONG + 1, 0]


def test_a_table_is_read_while_it_is_iterated_over(long):
    table = open_table(long[0] / "concepts.csv")

    def walk():
        last = None
        for row in table:
            last = row
        return last

    last, peak = peak_of(walk)
    assert last.line == LONG + 1
    assert last["image"] == long[1].files[-1]
    assert peak < 1_000_000
    assert next(iter(table)).line == 2


def test_mistakes_far_down_are_told_by_line(long, tmp_path):
    root, layout = long
    lines = (root / "concepts.csv").read_text().splitlines()
    for number, new, words in (
        (90_000, lines[7], r"line 90000: the image 'class6/000006\.jpg' has a row already, in line 8"),
        (
            95_001,
            f"{lines[95_000].rpartition(',')[0]},0.5",
            "line 2: 'red' in the column 'colour', where line 95001 has",
        ),
    ):
        changed = list(lines)
        changed[number - 1] = new
        (tmp_path / "concepts.csv").write_text("\n".join(changed))
        with pytest.raises(UserError, match=words):
            read_known(tmp_path, layout)


def table_of(tmp_path, raw):
    path = tmp_path / "concepts.csv"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_all_line_ends_and_the_mark_of_utf8(tmp_path, ends, mark):
    text = f'image,"note, quoted"{ends}a.png,"one{ends}two ""three"""{ends}{ends}"b, c.png",{ends}'
    table = read_table(table_of(tmp_path, mark + text.encode()))
    assert table.columns == ("image", "note, quoted")
    assert [row.cells["image"] for row in table.rows] == ["a.png", "b, c.png"]
    assert table.rows[0]["note, quoted"] == f'one{ends}two "three"'
    assert [row.line for row in table.rows] == [2, 5]


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "line 1 begins with the mark of UTF-16"),
        ("utf-32", "line 1 begins with the mark of UTF-32"),
        (
            "utf-16-le",
            "from line 1 on every second byte is zero, so it is probably UTF-16-LE without a byte order mark",
        ),
        ("utf-16-be", "probably UTF-16-BE without"),
        ("latin-1", r"line 4 holds the byte 0xfc, 'ü' in Latin-1 \(ISO-8859-1\), its probable encoding"),
    ],
)
def test_other_encodings_are_named(tmp_path, encoding, words):
    text = "image,colour\na.png,red\nb.png,red\nc.png,grün\n"
    path = table_of(tmp_path, text.encode(encoding))
    with pytest.raises(UserError, match=rf"concepts\.csv is not UTF-8 text: .*{words}.*; save it as CSV in UTF-8"):
        read_table(path)


def test_windows_text_is_told_from_latin_1(tmp_path):
    path = table_of(tmp_path, "image,note\na.png,grün\nb.png,5 € – “fine”\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 2 holds the byte 0xfc, 'ü' in Windows-1252 \(cp1252\)"):
        read_table(path)
    path = table_of(tmp_path, b"image,note\r\na.png,\x81\x8d\r\n")
    with pytest.raises(UserError, match="line 2 holds the byte 0x81, of an encoding that cannot be told"):
        read_table(path)


def test_a_bad_byte_far_down_is_told_by_line(tmp_path):
    rows = [f"{i}.png,red" for i in range(50_000)]
    rows[40_000] = "ä.png,red"
    path = table_of(tmp_path, "\r".join(["image,colour", *rows]).encode("latin-1"))
    with pytest.raises(UserError, match="line 40002 holds the byte 0xe4"):
        for _ in open_table(path):
            pass


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"image,a\na.png,1\nb\0.png,1\n", "line 3 holds a zero byte"),
        (b"PK\x03\x04" + bytes(50), "is a spreadsheet or an archive, no text; export it as CSV"),
        (b"\xd0\xcf\x11\xe0" + bytes(50), "is a spreadsheet"),
        ('image,a\na.png,1\n"b.png,1\nc.png,1\n', "line 3: a cell begins with a quote that is not closed"),
        ('image,a\na.png,1\n"b.png,1\n' + "c.png,1\n" * 40_000, "line 3: a cell begins with a quote"),
        ('image,a\n"a.png"x,1\n', r"line 2: .*expected after.*; mend the quotes"),
        ("image,a\n" + "x" * 1_000_001, "line 2 has more than 1,000,000 characters"),
        ("image;a\na.png;1\n", "is not separated by commas but by semicolons; save it as CSV with commas"),
        ("image\ta\na.png\t1\n", "by tabs"),
        ("image|a\na.png|1\n", "by pipes"),
        ("image;degree, free;a\na.png;0,5;1\n", "by semicolons"),
        (
            "a.png,1,red\nb.png,0,blue\n",
            r"has no header: its first line holds 'a\.png' already; put a line with the names",
        ),
        ("a.png,1,1\nb.png,0,1\n", "has no header"),
        ("a.png,1,\nb.png,0,1\n", "has no header"),
        ("7,a,1\n8,b,1\n", "has no header: its first line holds '7' already"),
        ("\n \n,,\n", "is empty"),
        ("file,a\na.png,1\n", r"has no column 'image' \(it has: file, a\)"),
    ],
)
def test_what_is_no_table_is_refused_with_a_cure(tmp_path, raw, words):
    path = table_of(tmp_path, raw)
    with pytest.raises(UserError, match=rf"concepts\.csv:? .*{words}"):
        read_table(path).require("image")


def test_names_of_columns_may_hold_other_separators(tmp_path):
    path = table_of(tmp_path, "image,big|small,a;b\nx.png,1,2\n")
    assert open_table(path).columns == ("image", "big|small", "a;b")


def test_a_column_of_remarks_is_refused_or_ignored(tmp_path):
    count = MAX_VALUES + 1
    files = [f"a/{i}.png" for i in range(count)]
    layout = Layout(files, np.zeros(count, np.int64), ("a", "b"), None)
    rows = [(file, i % 2, f"remark {i}") for i, file in enumerate(files)]
    write_csv(tmp_path / "concepts.csv", ("image", "wings", "remark"), rows)
    words = rf"line {count + 1}: the column 'remark' holds more than 1,000 different words.*data\.ignore=\[remark\]"
    with pytest.raises(UserError, match=words):
        read_known(tmp_path, layout)
    assert read_known(tmp_path, layout, ignore=["remark"]).concepts.names == ("wings",)


@pytest.fixture
def root(tmp_path):
    """Two classes of ten images, nothing else."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


def test_columns_can_be_ignored(root):
    rows = [(file, i % 2, i, "maple", "test") for i, file in enumerate(FOLDER_FILES)]
    write_csv(root / "concepts.csv", ("image", "wings", "patient", "class", "split"), rows)
    source = build_folder(root, ignore=["patient", "class", "split"])
    assert source.concepts.names == ("wings",)
    assert len(source.splits["train"]) == 12
    with pytest.raises(UserError, match=r"no column 'patent'.*did you mean 'patient'"):
        build_folder(root, ignore=["patent"])
    with pytest.raises(UserError, match=r"data\.ignore names the column 'image'"):
        build_folder(root, ignore="image")
    with pytest.raises(UserError, match=r"'patient' is in data\.categorical and in data\.ignore"):
        build_folder(root, ignore="patient", categorical=["patient"])
    (root / "concepts.csv").unlink()
    with pytest.raises(UserError, match=r"ignore columns are named, but there is no .*concepts\.csv"):
        build_folder(root, ignore="patient")


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_paths_with_spaces_and_any_letters(tmp_path, on_disk, in_table):
    root = tmp_path / "meine Bilder"
    name = "Äpfel (grün)/größer ñ 木 1.png"
    write_folder(root)
    write_image(root / unicodedata.normalize(on_disk, name), 5, size=(24, 20))
    for index in range(5):
        write_image(root / unicodedata.normalize(on_disk, f"Äpfel (grün)/{index}.png"), 60 + index)
    write_image(root / "maps" / unicodedata.normalize(in_table, name), 6, size=(24, 20))
    said = unicodedata.normalize(in_table, name)
    kind = unicodedata.normalize(in_table, "Äpfel (grün)")
    write_csv(root / "concepts.csv", ("image", "class", "wings"), [(said, kind, 1), ("cat/cat0.png", "cat", 0)])
    write_csv(root / "keypoints.csv", ("image", "part", "x", "y"), [(said.split("/")[1], "head", 12, 10)])
    source = build_folder(root)
    sample = sample_of(source, unicodedata.normalize(on_disk, name))
    assert sample.concepts.tolist() == [1]
    assert sample.human_map is not None
    assert sample.keypoints[0, 2] == 1
    assert unicodedata.normalize(on_disk, name) in places(source)


def test_names_that_differ_only_in_composition_are_found_exactly():
    one, other = "é.png", unicodedata.normalize("NFD", "é.png")
    names = Names([one, "a.png", other])
    assert (names.find(one), names.find(other), names.find("a.png"), names.find("b.png")) == (0, 2, 1, None)
    assert Names([one]).find(other) == 0
    images = ImageNames([f"x/{one}", "y/b.png"])
    assert images.find(other) == 0
    assert images.find(r"y\b.png") == images.find("./y/b.png") == images.find("b.png") == 1
