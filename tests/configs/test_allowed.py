"""Only allowed packages are imported, and only what is theirs is found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vitrarium.configs import allowed
from vitrarium.configs.allowed import allow, allowed_by_user, find_named, is_allowed
from vitrarium.configs.errors import UserError

PACKAGE = """
import functools, os
from os import getcwd
from pathlib import Path
Path(__file__).with_name("imported").touch()

class Net:
    @classmethod
    def small(cls):
        return cls()

def make(width=1):
    return Net()

narrow = functools.partial(make, width=2)
foreign = functools.partial(os.getcwd)
NUMBER = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``ownpkg`` on the path that leaves a file behind when it is imported; nothing is allowed."""
    folder = tmp_path / "ownpkg"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "nets.py").write_text("class Deep: ...\n")
    monkeypatch.setenv(allowed.VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "ownpkg"]:
        del sys.modules[name]


def test_what_is_not_allowed_is_not_imported(package):
    with pytest.raises(UserError, match=r"code of the package 'ownpkg'.*VITRARIUM_ALLOW=ownpkg.*allow\('ownpkg'\)"):
        find_named("ownpkg.Net")
    assert not (package / "imported").exists()
    assert "ownpkg" not in sys.modules
    allow("ownpkg.nets")
    with pytest.raises(UserError, match="nothing was imported"):
        find_named("ownpkg.Net")
    assert not (package / "imported").exists()
    allow("ownpkg")
    assert find_named("ownpkg.Net").__name__ == "Net"
    assert (package / "imported").exists()


def test_a_name_that_only_begins_like_an_allowed_one_is_another(package):
    allow("ownpk")
    assert not is_allowed("ownpkg")
    assert is_allowed("ownpk.nets")
    assert not is_allowed("torchvision.datasets")
    assert is_allowed("torchvision.models.resnet")


@pytest.mark.parametrize("path", ["ownpkg.Net", "ownpkg.make", "ownpkg.narrow", "ownpkg.Net.small", "ownpkg.nets.Deep"])
def test_classes_functions_and_what_is_made_of_them(package, path):
    allow("ownpkg")
    assert callable(find_named(path))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ownpkg.os.getcwd", "code of the package 'os'"),
        ("ownpkg.getcwd", "code of the package 'posix'|code of the package 'nt'"),
        ("ownpkg.foreign", "code of the package 'posix'|code of the package 'nt'"),
        ("ownpkg.functools.partial", "code of the package 'functools'"),
        ("ownpkg.Net.__init__.__globals__", "names no class"),
        ("ownpkg.Nett", "ownpkg has no 'Nett'; did you mean 'Net'"),
        ("ownpkg.Net.smal", "ownpkg.Net has no 'smal'; did you mean 'small'"),
        ("ownpkg.nets.Dep", "ownpkg.nets has no 'Dep'; did you mean 'Deep'"),
        ("ownpkg.NUMBER", "is a int, neither class nor function; known: .*Net"),
        ("ownpkg.nets", "is a module, neither class nor function; known: Deep"),
        ("ownpkg.broken.Net", "ownpkg.broken cannot be imported .ZeroDivisionError: division by zero"),
        ("ownpkg", "names no class"),
        ("own pkg.Net", "names no class"),
        ("absentpkg.Net", "there is no package 'absentpkg'"),
    ],
)
def test_refusals(package, path, said):
    allow("ownpkg", "absentpkg")
    with pytest.raises(UserError, match=said):
        find_named(path)


@pytest.mark.parametrize("path", ["timm.models._hub.os.system", "vitrarium.configs.registry.importlib.import_module"])
def test_modules_inside_built_in_packages_are_no_way_out(path):
    with pytest.raises(UserError, match="which is not allowed"):
        find_named(path)


def test_the_list_is_the_environment_and_reaches_child_processes(monkeypatch):
    monkeypatch.setenv(allowed.VARIABLE, " first , second.nets ")
    allow("third", "first")
    assert allowed_by_user() == ["first", "second.nets", "third"]
    code = "from vitrarium.configs.allowed import is_allowed; assert is_allowed('third.Net')"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    for wrong in ("", "a-b", "own pkg", "pkg."):
        with pytest.raises(UserError, match="no name of a package"):
            allow(wrong)


def test_the_current_directory_is_looked_at_for_allowed_packages_only(tmp_path, monkeypatch):
    (tmp_path / "herepkg.py").write_text("class Net: ...\n")
    monkeypatch.setenv(allowed.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    before = list(sys.path)
    with pytest.raises(UserError, match="not allowed"):
        find_named("herepkg.Net")
    assert sys.path == before
    allow("herepkg")
    try:
        assert find_named("herepkg.Net").__name__ == "Net"
        # At the end: nothing that lies here comes before what is installed.
        assert sys.path == [*before, str(tmp_path)]
    finally:
        sys.modules.pop("herepkg", None)
