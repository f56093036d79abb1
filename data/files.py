"""Files of a data set: inside its folder, readable, an image of bearable size; known by their content."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import MAX_PIXELS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""Endings of image files, in small letters."""

MAX_ASPECT = 200
"""A narrower strip is refused: with its shorter side enlarged to the model's size it would fill the memory."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture must be turned to be upright; values above 4 swap width and height."""

_NAMED = 5
"""Files that one message names."""


class BrokenFiles(UserError):
    """Files that are missing, unreadable or no images: the first few are named in the message, all are at hand.

    Args:
        problems: what is wrong, a sentence for each file that names it.
        cure: what to do about it.
    """

    def __init__(self, problems: Sequence[str], cure: str) -> None:
        self.problems = tuple(problems)
        rest = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        super().__init__("; ".join(problems[:_NAMED]) + rest, cure)


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


def digests(paths: Sequence[Path], where: Sequence[str] = ()) -> list[str]:
    """SHA-256 of the content of each file, in order; equal content means an exact duplicate.

    Args:
        paths: of the files.
        where: who names each of them ("images.txt line 7"), for the message.

    Raises:
        BrokenFiles: missing or unreadable files.
    """
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) * 2)) as pool:
        read = [one for found in pool.map(lambda chunk: [_digest(p) for p in chunk], chunks) for one in found]
    wrong = [(index, problem) for index, (_, problem) in enumerate(read) if problem]
    if wrong:
        problems = [f"{where[index]}: {problem}" if where else problem for index, problem in wrong]
        raise BrokenFiles(problems, "complete the data set, or remove the rows of such files")
    return [digest for digest, _ in read]


def _digest(path: Path) -> tuple[str, str]:
    """The digest of a file, and what is wrong with it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), ""
    except FileNotFoundError:
        return "", f"the file '{path}' is missing"
    except OSError as error:
        return "", f"'{path}' cannot be read ({error.strerror or error})"


def check_headers(paths: Sequence[Path], where: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Look at the first bytes of every image file; pixels are not decoded, so a truncated file still passes.

    Args:
        paths: of the files.
        where: who names each of them ("images.txt line 7"), for the message.

    Returns:
        Width and height of each, as it is seen upright.

    Raises:
        BrokenFiles: files that are no images or too large.
    """
    sizes, problems = [], []
    for index, path in enumerate(paths):
        size, problem = _header(path)
        if problem:
            problems.append(f"{where[index]}: {problem}" if where else problem)
        sizes.append(size)
    if problems:
        raise BrokenFiles(problems, "replace or remove such files")
    return sizes


def _header(path: Path) -> tuple[tuple[int, int], str | None]:
    """Width and height of an image as it is seen upright, and what is wrong with its file."""
    size = (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                size = width, height = picture.size
                # A PNG without it in front would be decoded as a whole to look for it behind.
                behind = picture.format == "PNG" and "exif" not in picture.info
                if not behind and picture.getexif().get(ORIENTATION) in (5, 6, 7, 8):
                    size = height, width
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return size, f"'{path}' unpacks to more pixels than is safe"
    except UnidentifiedImageError:
        return size, f"'{path}' is {'empty' if path.stat().st_size == 0 else 'no image file'}"
    except (OSError, SyntaxError, ValueError) as error:
        return size, f"'{path}' cannot be read ({error})"
    if width * height > MAX_PIXELS:
        return size, f"'{path}' has {width} x {height} pixels, more than {MAX_PIXELS:,}"
    if max(width, height) > MAX_ASPECT * min(width, height):
        return size, f"'{path}' has {width} x {height} pixels, a strip that no square shows"
    return size, None
