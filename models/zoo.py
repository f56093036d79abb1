"""Animals in the zoo: trained models that come with the package, called ``zoo/<preset>-<data>``."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

from vitrarium.configs.errors import UserError, closest

PREFIX = "zoo"
FOLDER = Path(str(importlib.resources.files("vitrarium"))) / "animals"


def animals() -> list[str]:
    """Names of all animals ("zoo/cbm-flowers"), sorted: the folders that are there, hidden ones apart."""
    return sorted(f"{PREFIX}/{path.parent.name}" for path in FOLDER.glob("[!.]*/config.json"))


def animal_folder(path: str | Path) -> Path | None:
    """The model folder of the animal that ``path`` names; None where it names none.

    Raises:
        UserError: a name that begins like an animal's, is none, and leads nowhere else.
    """
    prefix, *rest = Path(path).parts or ("",)
    if prefix != PREFIX or len(rest) > 1:
        return None
    name = f"{PREFIX}/{rest[0] if rest else ''}"
    if name in animals():
        return FOLDER / rest[0]
    if not Path(path).exists():
        raise UserError(f"there is no animal '{name}'", f"{closest(name, animals())} (vitrarium list zoo)")
    return None


def animal_facts(name: str) -> dict[str, Any]:
    """What is known about an animal ("zoo/cbm-flowers"): data set, preset, seed, and the numbers of its card."""
    folder = animal_folder(name)
    if folder is None:
        raise UserError(f"'{name}' is no animal", closest(name, animals()))
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["facts"])
