"""Finding the things that tables name: images by path, classes by name, whichever way their letters are composed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import NoReturn

from vitrarium.configs.errors import UserError, closest

_COMPARED = 10_000
"""Names that a misspelt one is compared with."""


def composed(name: str) -> str:
    """A name in the composed form of Unicode (NFC): some systems write é as one letter, others as e and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class Names:
    """The positions of names; one that is not found as it is written is looked for in its composed form.

    Args:
        names: the names there are. Where two are the same in their composed form, only their exact spelling is found.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name: index for index, name in enumerate(names)}

    def find(self, name: str) -> int | None:
        """Position of a name, or None."""
        exact = self._exact.get(name)
        return self._composed.get(composed(name)) if exact is None else exact

    @cached_property
    def _composed(self) -> dict[str, int | None]:
        """Composed form to position, None where two names have it. Only made when a name is not found as written."""
        forms: dict[str, int | None] = {}
        for name, index in self._exact.items():
            if not name.isascii():
                form = composed(name)
                forms[form] = None if form in forms else index
        return forms


class ImageNames:
    """How tables name images: by the path relative to the root, or by the file name where it is unique.

    Args:
        files: paths of the N images relative to the root.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files, self._paths = files, Names(files)

    def find(self, name: str) -> int | None:
        """Position of the image called ``name``, or None: :meth:`refuse` says why."""
        found = self._paths.find(name)
        if found is None:
            path = PurePosixPath(name.replace("\\", "/")).as_posix()
            found = self._paths.find(path)
            if found is None:
                same = self._short.get(composed(path), ())
                found = same[0] if len(same) == 1 else None
        return found

    @cached_property
    def _short(self) -> dict[str, list[int]]:
        """File name to images. Only made when an image is not named by its path: for a million of them it is large."""
        short: dict[str, list[int]] = {}
        for index, file in enumerate(self._files):
            short.setdefault(composed(file.rpartition("/")[2]), []).append(index)
        return short

    def refuse(self, name: str, where: str, more: int = 0) -> NoReturn:
        """Say why no image is called ``name``; ``where`` names it, and ``more`` later lines name none either."""
        path = PurePosixPath(name.replace("\\", "/")).as_posix()
        same = self._short.get(composed(path), [])
        if not name:
            raise UserError(f"{where}: no image is named", f"write its path, as in {self._files[0]}")
        if same:
            raise UserError(
                f"{where}: {len(same)} images are called '{name}'", f"write the path, as in {self._files[same[0]]}"
            )
        others = f", and none for {more:,} later line{'s' if more > 1 else ''}" if more else ""
        raise UserError(f"{where}: there is no image '{name}'{others}", self._near(path))

    def _near(self, path: str) -> str:
        """The closest names: of the same folder if it is there. Comparing with very many would take minutes."""
        folder = path.rpartition("/")[0]
        near = [file for file in self._files if folder and file.startswith(f"{folder}/")]
        known = near or (self._files if "/" in path else list(self._short))
        if len(known) > _COMPARED:
            return f"mend the name; images are called like {known[0]}"
        return closest(path, known)
