from __future__ import annotations

import functools
import logging
import sys
import textwrap

import pytest

from vitrarium.configs import registry as module
from vitrarium.configs.errors import UserError, closest
from vitrarium.configs.registry import Registry


def make():
    animals = Registry("animal")

    @animals.register("owl")
    class Owl:
        def __init__(self, size, colour: str = "brown"):
            self.size, self.colour = size, colour

    @animals.register("owlet")
    def owlet(size, channels=0):
        return size, channels

    return animals


def test_build_hands_over_what_the_signature_names():
    animals = make()
    owl = animals.build({"name": "owl", "colour": "white"}, size=3, channels=9)
    assert (owl.size, owl.colour) == (3, "white")
    assert animals.build("owlet", size=1, channels=2) == (1, 2)


def test_list_matches_patterns():
    assert make().list() == ["owl", "owlet"]
    assert make().list("owl?*") == ["owlet"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("olw", "did you mean 'owl'"),
        ({"name": "owl", "color": "x"}, "did you mean 'colour'"),
        ({"colour": "x"}, "needs a name"),
        ({"name": "owl"}, "needs the option 'size'"),
    ],
)
def test_refusals_name_the_closest(spec, said):
    with pytest.raises(UserError, match=said):
        make().build(spec)


def test_what_the_house_gives_is_not_the_users_to_set():
    with pytest.raises(UserError, match="no option 'size'"):
        make().build({"name": "owl", "size": 1}, size=2)


def test_a_name_taken_twice_is_an_error():
    animals = make()
    with pytest.raises(ValueError, match="registered twice"):
        animals.register("owl")(object)


def test_a_definition_made_again_takes_the_place_of_the_older():
    """A notebook cell that is run twice, or a module that is reloaded."""
    animals, cell = Registry("animal"), "@animals.register('newt')\nclass Newt:\n    legs = {}\n"
    for legs in (3, 4):
        exec(cell.format(legs), {"animals": animals, "__name__": "__main__"})
    assert animals.build("newt").legs == 4
    with pytest.raises(ValueError, match="registered twice"):
        exec(cell.format(5), {"animals": animals, "__name__": "elsewhere"})
    with pytest.raises(ValueError, match="registered twice"):
        exec(cell.format(5).replace("Newt", "Eft"), {"animals": animals, "__name__": "__main__"})
    assert animals.build("newt").legs == 4


def test_what_has_no_name_is_never_the_same_definition():
    animals = Registry("animal")
    animals.register("newt")(functools.partial(dict, legs=4))
    with pytest.raises(ValueError, match="registered twice"):
        animals.register("newt")(functools.partial(dict, legs=3))


def test_names_are_snake_case():
    with pytest.raises(ValueError, match="snake_case"):
        make().register("BarnOwl")


def test_closest_lists_a_short_registry_whole():
    assert closest("zzz", ["a", "b"]) == "known: a, b"
    assert closest("zzz", []) == "there are none"


def test_a_plugin_of_another_package_is_loaded(tmp_path, monkeypatch, caplog):
    """A package that offers the entry point registers its members when a registry is first asked."""
    package = tmp_path / "birds"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        textwrap.dedent("""
        from vitrarium.models.evidence.base import EVIDENCE
        from vitrarium.models.evidence.features import PooledFeatures

        @EVIDENCE.register("birdsong")
        class Birdsong(PooledFeatures):
            '''Sings.'''
        """)
    )
    info = tmp_path / "birds-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: birds\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[vitrarium.plugins]\nbirds = birds\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_plugins", None)
    from vitrarium.models.evidence.base import EVIDENCE

    monkeypatch.setattr(EVIDENCE, "_loaded", False)
    try:
        with caplog.at_level(logging.INFO, module.plugin_logger.name):
            assert "birdsong" in EVIDENCE
            assert module.load_plugins() == {"birds": "birds"}
        assert caplog.messages == ["plugin birds (birds) loaded"]
    finally:
        EVIDENCE._entries.pop("birdsong", None)
        sys.modules.pop("birds", None)


def test_a_broken_plugin_is_named(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[vitrarium.plugins]\nbroken = no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_plugins", None)
    with pytest.raises(UserError, match=r"plugin 'broken'.*no_such_module_anywhere"):
        module.load_plugins()
    monkeypatch.setattr(module, "_plugins", None)
