"""The examples run as a user runs them: as programs of their own, from any folder; notebooks have their own test."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vitrarium.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def start(*arguments: object, folder: Path, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in another process and folder."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **(more or {})}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_run_from_any_folder(example, tmp_path):
    done = start(example, tmp_path / "out", folder=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_own_data_take_twenty_lines():
    """What a user writes for a folder of his own; drawing the toy data is not part of it."""
    tree = ast.parse((EXAMPLES / "own_folder.py").read_text(encoding="utf-8"))
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    statements = [node for node in ast.walk(ast.Module(main.body, [])) if isinstance(node, ast.stmt)]
    lines = {line for node in statements for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    assert len(lines) <= 20


@pytest.fixture
def site(tmp_path):
    """The plugin, installed without pip: what lies in site-packages afterwards is its module and its metadata."""
    project = tomllib.loads((EXAMPLES / "plugin" / "pyproject.toml").read_text(encoding="utf-8"))
    name, version = project["project"]["name"], project["project"]["version"]
    metadata = tmp_path / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = [f"[{group}]" + "".join(f"\n{k} = {v}" for k, v in entries.items())
              for group, entries in project["project"]["entry-points"].items()]  # fmt: skip
    (metadata / "entry_points.txt").write_text("\n".join(points) + "\n")
    (metadata / "top_level.txt").write_text("\n".join(project["tool"]["setuptools"]["py-modules"]) + "\n")
    for module in project["tool"]["setuptools"]["py-modules"]:
        (tmp_path / "site" / f"{module}.py").write_text((EXAMPLES / "plugin" / f"{module}.py").read_text())
    return tmp_path / "site"


def test_the_plugin_is_found_by_its_entry_point(site, tmp_path, capsys):
    """Its command runs, every process says that it was loaded, and its model says who is missing where it is not."""
    tiny = ["data.size=32", "data.train=32", "data.val=16", "data.test=16", "backbone.widths=[8]", "train.epochs=1"]
    readme = (EXAMPLES / "plugin" / "README.md").read_text(encoding="utf-8")
    (train,) = [shlex.split(line)[1:] for line in readme.splitlines() if line.startswith("    vitrarium train")]
    loaded = "vitrarium: plugin generalised_mean (vitrarium_generalised_mean) loaded"
    done = start("-m", "vitrarium", *train, *tiny, "-o", "run", folder=tmp_path, more={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert "model: run" in done.stdout
    assert done.stderr.count(loaded) == 1
    listed = start("-m", "vitrarium", "list", "evidence", folder=tmp_path, more={"PYTHONPATH": str(site)})
    assert "generalised_mean" in listed.stdout
    assert listed.stderr.strip() == loaded
    # This process has not installed it.
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    missing = capsys.readouterr().err
    assert "unknown evidence 'generalised_mean'; it came from the package" in missing
    assert "vitrarium-generalised-mean 0.1.0 (module vitrarium_generalised_mean): install it" in missing
