"""The documentation does what it says: its code runs, its links lead somewhere, its tables are those of the code.

Comments directly above a fenced block change what is done with it:

- ``<!-- not run: reason -->``: only checked for syntax and names;
- ``<!-- file: name -->``: written to that file where the page works; the tests of a ``test_*.py`` are called;
- ``<!-- prints -->``: what the block before it printed.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import vitrarium as vt
from vitrarium.cli import build_parser, main
from vitrarium.configs.compose import compose, compose_experiment, to_plain

ROOT = Path(__file__).parents[2]
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("README.md")])
WRITTEN = [*PAGES, *sorted(EXAMPLES.rglob("*.md")), *sorted(EXAMPLES.rglob("*.py")), *sorted(EXAMPLES.rglob("*.toml"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass
class Block:
    """A fenced block: its language, text, first line in the page, and the comment above it."""

    language: str
    text: str
    line: int
    mark: str
    about: str


FENCE = re.compile(r"(?:^<!-- *(not run|file|prints)(?:: *(.*?))? *-->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m[3], m[4], text.count("\n", 0, m.start(4)) + 1, m[1] or "", m[2] or "") for m in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The ``vitrarium`` lines of a block; a backslash at the end of a line joins it with the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.lstrip("$ ").startswith("vitrarium ")]


def code_of(block: Block, page: Path) -> object:
    # Empty lines in front, so that a traceback names the line of the page.
    return compile("\n" * (block.line - 1) + block.text, name_of(page), "exec")


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty folder to work in; modules written there can be imported, and what they register is forgotten again."""
    from vitrarium.models.evidence.base import EVIDENCE
    from vitrarium.train.events.base import EVENTS
    from vitrarium.train.terms.base import TERMS

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VITRARIUM_ALLOW", "")
    modules, registries = set(sys.modules), (EVIDENCE, EVENTS, TERMS)
    names = [set(registry.list()) for registry in registries]
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]
    for registry, known in zip(registries, names, strict=True):
        for name in set(registry.list()) - known:
            del registry._entries[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_says_can_be_run(page, workshop, capsys):
    names: dict[str, object] = {"__name__": "page"}
    printed = ""
    for block in blocks_of(page):
        where = f"{name_of(page)}, line {block.line}"
        if block.mark == "file":
            (workshop / block.about).write_text(block.text, encoding="utf-8")
            if block.about.startswith("test_"):
                call_tests(workshop / block.about, workshop)
        elif block.mark == "prints":
            assert printed.strip() == block.text.strip(), where
        elif block.mark == "not run":
            check_only(block, page)
        elif block.language == "python":
            capsys.readouterr()
            exec(code_of(block, page), names)  # type: ignore[arg-type]
            printed = capsys.readouterr().out
        elif block.language == "sh":
            for command in commands(block):
                assert main(command) == 0, f"{where}: vitrarium {shlex.join(command)}\n{capsys.readouterr().err}"


def call_tests(path: Path, folder: Path) -> None:
    """Call the test functions of a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [f for n, f in inspect.getmembers(module, inspect.isfunction) if n.startswith("test_")]
    assert tests
    for test in tests:
        test(**({"tmp_path": folder / test.__name__} if "tmp_path" in inspect.signature(test).parameters else {}))


def check_only(block: Block, page: Path) -> None:
    """Python compiles; verbs, options, presets and keys of commands are known."""
    assert len(block.about) > 3, f"{name_of(page)}, line {block.line}: say why it is not run"
    if block.language == "python":
        code_of(block, page)
    if block.language == "sh":
        for command in commands(block):
            given = build_parser().parse_args(command)
            if given.verb == "train":
                written = [o for o in given.overrides if not re.fullmatch(r"[\w.]+=.*\.yaml", o)]
                compose(written, given.config, given.configs)
            elif given.verb == "experiment":
                compose_experiment(given.name, given.overrides, given.configs)


@pytest.mark.parametrize("page", [p for p in WRITTEN if p.suffix == ".md"], ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ +(.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        if page.name != "index.md":
            assert f"({page.relative_to(DOCS).as_posix()})" in index, f"docs/index.md does not name {name_of(page)}"


def test_every_preset_is_written_about():
    families = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "families").glob("*.md"))
    for preset in vt.names("presets"):
        assert f"`{preset}`" in families, f"no page of docs/families names the preset {preset}"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_no_machine_is_named(path):
    found = re.search(r"(?<![\w.])(/(work|home|root|tmp|Users|mnt|opt)/|[A-Z]:\\)", path.read_text(encoding="utf-8"))
    assert found is None, f"{name_of(path)} names a path of some machine: {found and found.group(0)}"


# Tables of options.

ROW = re.compile(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? *\|", re.M)


def rows_of(page: Path, heading: str) -> list[tuple[str, str]]:
    """Key and default of the tables of a section whose head is "| option | default | ..."."""
    text = page.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(heading, 1)[1], maxsplit=1, flags=re.M)[0]
    rows = ROW.findall(section)
    assert rows, f"{name_of(page)} has no table under '{heading}'"
    return rows


def default_of(key: str, config: dict) -> object:
    """What a key is when nobody sets it: as composed, or as in the signature of the part it belongs to."""
    here: object = config
    for step in key.split("."):
        if not isinstance(here, dict) or step not in here:
            return signature_default(key, config)
        here = here[step]
    return here


def signature_default(key: str, config: dict) -> object:
    from vitrarium.data.source import DATASETS
    from vitrarium.models.evidence.base import EVIDENCE
    from vitrarium.models.readouts.base import READOUTS
    from vitrarium.train.events.base import EVENTS
    from vitrarium.train.terms.base import TERMS

    *path, option = key.split(".")
    match path:
        case ["data"]:
            entry = DATASETS.get(config["data"]["name"])
        case ["model", "evidence"]:
            entry = EVIDENCE.get(config["model"]["evidence"]["name"])
        case ["model", "readout"]:
            entry = READOUTS.get(config["model"]["readout"]["name"])
        case ["terms", term]:
            entry = TERMS.get(term)
        case ["recipe", stage, "events", event]:
            assert event in config["recipe"][stage]["events"], key
            entry = EVENTS.get(event)
        case _:
            raise AssertionError(f"there is no key {key}")
    return inspect.signature(entry).parameters[option].default


def check_defaults(page: Path, heading: str, *overrides: str) -> None:
    import yaml

    config = to_plain(compose(overrides))
    for key, written in rows_of(page, heading):
        if not written:
            continue
        actual = default_of(key, config)
        actual = list(actual) if isinstance(actual, tuple) else actual
        assert yaml.safe_load(written) == actual, f"{name_of(page)}: {key} is {actual!r}, the page says {written}"


def test_the_options_of_own_data_are_those_of_the_code():
    from vitrarium.data.source import DATASETS

    page = DOCS / "bring_your_own_data.md"
    check_defaults(page, "### Options", "data=folder", "data.root=leaves")
    named = {key.removeprefix("data.") for key, _ in rows_of(page, "### Options")}
    assert named == set(inspect.signature(DATASETS.get("folder")).parameters)


@pytest.mark.parametrize(
    ("page", "heading", "preset"),
    [
        ("baselines", "## Options", "multitask"),
        ("concept_bottlenecks", "### Options of every preset", "cbm"),
        ("concept_bottlenecks", "### Options of cbm_hard", "cbm_hard"),
        ("concept_bottlenecks", "### Options of cbm_logit", "cbm_logit"),
        ("concept_bottlenecks", "### Options of cbm_sequential and cbm_independent", "cbm_sequential"),
        ("concept_bottlenecks", "### Options of cbm_sequential and cbm_independent", "cbm_independent"),
        ("prototypes", "### Options of protopnet_cosine", "protopnet_cosine"),
        ("prototypes", "### Options of protopnet", "protopnet"),
        ("prototypes", "### Options of protopnet_released", "protopnet_released"),
        ("prototypes", "### Options of tesnet", "tesnet"),
        ("prototypes", "### Options of protopool", "protopool"),
        ("prototypes", "### Options of deformable_protopnet", "deformable_protopnet"),
        ("prototypes", "### Options of prototree", "prototree"),
        ("prototypes", "### Options of pipnet", "pipnet"),
        ("prototypes", "### Options of concept_prototypes", "concept_prototypes"),
        ("concept_whitening", "## Options", "concept_whitening"),
        ("interpretable_cnn", "## Options", "interpretable_cnn"),
        ("self_explaining", "### Options of antehoc", "antehoc"),
        ("self_explaining", "### Options of senn", "senn"),
    ],
)
def test_the_options_of_families_are_those_of_the_code(page, heading, preset):
    check_defaults(DOCS / "families" / f"{page}.md", f"\n{heading}\n", f"model={preset}")


def test_the_options_of_own_backbones_are_those_of_the_code():
    import yaml

    from vitrarium.models.backbones.own_module import build_module

    written = dict(rows_of(DOCS / "bring_your_own_backbone.md", "## Options"))
    parameters = inspect.signature(build_module).parameters
    assert set(written) == set(parameters)
    for name, default in written.items():
        assert not default or yaml.safe_load(default) == parameters[name].default, name


# Messages about bad data.


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """The folder that the page on own data draws."""
    folder = tmp_path_factory.mktemp("own")
    page = DOCS / "bring_your_own_data.md"
    names: dict[str, object] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code_of(blocks_of(page)[0], page), names)  # type: ignore[arg-type]
    return folder / "leaves"


def edit(root: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of ``concepts.csv``."""
    table = root / "concepts.csv"
    table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")


def column(name: str, value: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [f"{lines[0]},{name}", *(f"{line},{value}" for line in lines[1:])]


def cell(line: int, old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [text.replace(old, new, 1) if n == line else text for n, text in enumerate(lines, 1)]


def draw_map(root: Path, name: str, grey: int) -> None:
    from PIL import Image

    (root / "maps" / "birch").mkdir(parents=True)
    Image.new("L", (8, 8), grey).save(root / "maps" / "birch" / name)


def only(root: Path, kept: Callable[[Path], bool]) -> None:
    import shutil

    for path in sorted(root.glob("*/*.png")):
        if not kept(path):
            path.unlink()
    for folder in [f for f in root.iterdir() if f.is_dir() and not any(f.iterdir())]:
        shutil.rmtree(folder)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


MISTAKES: list[Callable[[Path], object]] = [
    lambda r: r.rename(r.parent / "elsewhere"),
    lambda r: only(r, lambda p: p.parent.name == "birch"),
    lambda r: (r / "birch" / "01.png").rename(r / "01.png"),
    lambda r: (r / "willow").rename(r / "test"),
    lambda r: (r / "train_test_split.txt").write_text("1 0\n"),
    lambda r: (r / "birch" / "notes.txt").write_text("spots are hard to see"),
    lambda r: truncate(r / "birch" / "00.png", 0),
    lambda r: truncate(r / "birch" / "00.png", 60),
    lambda r: edit(r, lambda lines: [line.replace(",", ";") for line in lines]),
    lambda r: (r / "concepts.csv").write_bytes((r / "concepts.csv").read_bytes() + "birch/é".encode("latin-1")),
    lambda r: edit(r, cell(3, "birch/01", "birch/\0")),
    lambda r: edit(r, lambda lines: lines[1:]),
    lambda r: edit(r, cell(1, "image", "file")),
    lambda r: edit(r, cell(2, ",no,", ",no,left, right,")),
    lambda r: edit(r, cell(2, "birch/00.png", "birch/0.png")),
    lambda r: edit(r, cell(3, "birch/01.png", "birch/00.png")),
    lambda r: edit(r, cell(3, "0.67", "33")),
    lambda r: edit(r, lambda lines: cell(2, ",1", ",0.67")(cell(3, "0.67", "many")(lines))),
    lambda r: edit(r, column("veins", "")),
    lambda r: (r / "class_concepts.csv").write_text("class,bark\nbirch,white\nmaple,grey\nwillow,grey\n"),
    lambda r: ((r / "concepts.csv").unlink(), (r / "class_concepts.csv").write_text("class,bark\nbirch,1\nmaple,0\n")),
    lambda r: edit(r, column("split", "tset")),
    lambda r: edit(r, lambda lines: column("split", "test")(lines)[:-1]),
    lambda r: edit(r, column("class", "maple")),
    lambda r: (r / "concepts.csv").rename(r / "concept.csv"),
    lambda r: draw_map(r, "00_map.png", 255),
    lambda r: draw_map(r, "00.png", 1),
    lambda r: draw_map(r, "00.png", 255),
    lambda r: (r / "keypoints.csv").write_text("image,part,x,y\nbirch/00.png,stem,500,10\n"),
    lambda r: (r / "birch" / "extra.png").symlink_to(r.parent.parent / "outside.png"),
    lambda r: (only(r, lambda p: p.stem == "00"), (r / "concepts.csv").unlink()),
    lambda r: (r / "concepts.csv").unlink(),
]


def test_messages_about_own_data_are_those_of_the_code(leaves, tmp_path, monkeypatch):
    import shutil

    text = (DOCS / "bring_your_own_data.md").read_text(encoding="utf-8")
    table = text.split("<!-- messages -->")[1].split("<!-- /messages -->")[0]
    written = re.findall(r"^\| `(.*?)` \|", table, flags=re.M)
    assert len(written) == len(MISTAKES), "one row for each mistake"
    for number, (message, spoil) in enumerate(zip(written, MISTAKES, strict=True)):
        place = tmp_path / str(number)
        shutil.copytree(leaves, place / "leaves")
        spoil(place / "leaves")
        monkeypatch.chdir(place)
        with pytest.raises(vt.UserError) as refused:
            read_all()
        assert message in str(refused.value).replace(f"{place}/", "")


def read_all() -> None:
    """What training reads and builds before its first step, from the folder ``leaves``."""
    from vitrarium.runs import build_source_of
    from vitrarium.training import build_model

    config = to_plain(compose(["model=cbm", "data=folder", "data.root=leaves", "data.size=32"]))
    source = build_source_of(config)
    for split in source.splits.values():
        for index in range(len(split)):
            split.sample(index)
    build_model(config, source)


# Examples.


def test_the_page_and_the_example_show_the_same_layer():
    shown = next(b.text for b in blocks_of(DOCS / "add_your_own_evidence.md") if b.about == "top_patches.py")
    layer = shown[shown.index("@EVIDENCE") :].strip()
    assert layer in (EXAMPLES / "own_evidence.py").read_text(encoding="utf-8")
    preset = next(b.text for b in blocks_of(DOCS / "add_your_own_evidence.md") if b.about == "preset.yaml")
    assert preset.strip() in (EXAMPLES / "own_evidence.py").read_text(encoding="utf-8")
