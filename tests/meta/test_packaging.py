"""Guards of what setuptools cannot find by itself."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("configs", "data", "models", "eval", "train", "api")


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_of(folder: Path) -> str:
    room, *rest = folder.relative_to(ROOT).parts
    return ".".join(["vitrarium", *([] if room == "api" else [room]), *rest])


def test_the_package_list_is_what_lies_on_disk(pyproject):
    """One left out works when editable and is missing from the wheel."""
    listed = set(pyproject["tool"]["setuptools"]["packages"])
    on_disk = {package_of(f.parent) for room in ROOMS for f in (ROOT / room).rglob("__init__.py")}
    assert listed == on_disk


def test_every_room_is_mapped(pyproject):
    mapping = pyproject["tool"]["setuptools"]["package-dir"]
    assert mapping == {"vitrarium" if r == "api" else f"vitrarium.{r}": r for r in ROOMS}


def test_every_data_file_is_packaged(pyproject):
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                holders = [
                    path.match(pattern) or path.relative_to(ROOT / room).match(pattern.replace("**/", ""))
                    for patterns_of in patterns.values()
                    for pattern in patterns_of
                ]
                assert any(holders), f"{path.relative_to(ROOT)} would be missing from the wheel"


def test_imports_point_downwards():
    order = {room: i for i, room in enumerate(ROOMS)}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for module in modules:
                    parts = module.split(".")
                    if parts[0] != "vitrarium":
                        continue
                    target = parts[1] if len(parts) > 1 and parts[1] in order else "api"
                    assert order[target] <= order[room], f"{path.relative_to(ROOT)}:{node.lineno} imports {module}"
                if isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno} is a relative import"


def test_train_reads_only_the_metrics_of_eval():
    for path in (ROOT / "train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitrarium.eval"):
                assert node.module.startswith("vitrarium.eval.metrics"), f"{path.name} imports {node.module}"


def test_models_never_import_lightning():
    for path in (ROOT / "models").rglob("*.py"):
        assert "lightning" not in path.read_text(encoding="utf-8").replace("Lightning", ""), path.name


def test_no_public_name_is_a_module():
    """Importing the module would replace the function."""
    import vitrarium

    modules = {path.stem for path in (ROOT / "api").glob("*.py")} | set(ROOMS)
    assert not set(vitrarium.__all__) & modules


def test_modules_are_imported_under_one_name():
    """A room imported as a top-level package would register every member twice."""
    import vitrarium.models

    assert vitrarium.models.__name__ == "vitrarium.models"
    assert not {"models", "data", "train", "configs"} & {
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(ROOT))
    }


LIGHT = """
import sys, vitrarium{more}
heavy = {{'torch', 'timm', 'pytorch_lightning', 'albumentations'}} & set(sys.modules)
print(heavy)
sys.exit(bool(heavy))
"""


@pytest.mark.parametrize("more", ["", ", vitrarium.cli; vitrarium.cli.build_parser().format_help()"])
def test_importing_is_light(more):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(more=more)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_works_without_sockets():
    code = """
import socket
def refuse(*a, **k): raise OSError("the core asked the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from vitrarium.models import build
from vitrarium.data.augmentation import Augmentation
model = build({"backbone": "convnet", "evidence": "features", "readout": "linear"}, ["a", "b"])
print(model(torch.rand(1, 3, 32, 32)).logits.shape)
build({"backbone": "timm/resnet10t", "evidence": "features", "readout": "linear"}, ["a", "b"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_short():
    """One idea a file; the limit of a file that is read in one go."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path.relative_to(ROOT)


def test_examples_in_docstrings_hold():
    import doctest
    import importlib

    for name in ("vitrarium.configs.registry", "vitrarium.models.classifier", "vitrarium.models.units"):
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert result.attempted > 0
        assert result.failed == 0
