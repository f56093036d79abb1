"""Files of a data set: inside its folder, readable, an image of bearable size; known by their content."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import MAX_PIXELS

MAX_ASPECT = 200
"""A narrower strip is refused: with its shorter side enlarged to the model's size it would fill the memory."""


def existing_folder(path: str | Path, what: str, cure: str) -> Path:
    """``path`` as the absolute path of a folder that is there.

    Raises:
        UserError: it is missing, or no folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"{what} '{folder}' {problem}", cure)
    return folder.absolute()


def inside(root: Path, relative: str, where: str) -> Path:
    """The file ``relative`` of the data root, refused if it lies outside: by ``..``, as an absolute path or by a link.

    Args:
        root: the data root.
        relative: path with ``/``, as written in a table or found in the folder.
        where: who names it ("concepts.csv line 7"), for the message.
    """
    path = root / PurePosixPath(relative)
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{where}: '{relative}' leads nowhere ({error})", "remove the link") from error
    if not target.is_relative_to(_resolved(root)):
        raise UserError(
            f"{where}: '{relative}' leads out of the data folder '{root}'", "copy the file into the data folder"
        )
    return path


@functools.lru_cache(8)
def _resolved(root: Path) -> Path:
    return root.resolve()


def digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of the content of each file, in order; equal content means an exact duplicate.

    Raises:
        UserError: a missing or unreadable file.
    """
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) * 2)) as pool:
        return [digest for found in pool.map(lambda chunk: [_digest(p) for p in chunk], chunks) for digest in found]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise UserError(f"the file '{path}' is missing", "complete the data set, or remove its row") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error})", "check its permissions") from error


def check_headers(paths: Iterable[Path], most: int = 5) -> None:
    """Look at the first bytes of every image file; pixels are not decoded, so a truncated file still passes.

    Raises:
        UserError: files that are no images or too large, up to ``most`` of them by name.
    """
    problems = [problem for path in paths if (problem := _header_problem(path))]
    if problems:
        rest = f" and {len(problems) - most} more" if len(problems) > most else ""
        raise UserError("; ".join(problems[:most]) + rest, "replace or remove such files")


def _header_problem(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return f"'{path}' unpacks to more pixels than is safe"
    except UnidentifiedImageError:
        return f"'{path}' is {'empty' if path.stat().st_size == 0 else 'no image file'}"
    except (OSError, SyntaxError, ValueError) as error:
        return f"'{path}' cannot be read ({error})"
    if width * height > MAX_PIXELS:
        return f"'{path}' has {width} x {height} pixels, more than {MAX_PIXELS:,}"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"'{path}' has {width} x {height} pixels, a strip that no square shows"
    return None
