"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name when the block ends.

    A reader never sees half a file. If the block fails, an older file stays as it was and nothing is left beside it.

    Args:
        path: where the file is to be; its folder is made.

    Yields:
        The path to write to: the name of ``path`` with ``.part`` behind it.

    Raises:
        OSError: a folder that cannot be written; what the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Text in UTF-8 through :func:`whole_file`; line ends stay as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Bytes through :func:`whole_file`."""
    with whole_file(path) as beside:
        beside.write_bytes(content)
