"""Each example is decoded or drawn once; afterwards all epochs, workers and processes read the same arrays."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitrarium.data.batch import Sample
from vitrarium.data.derived import DerivedSplit
from vitrarium.data.reading import in_order
from vitrarium.data.rows import (
    ABOUT,
    FolderWriter,
    MemoryWriter,
    NotWritable,
    Rows,
    RowWriter,
    decode,
    open_rows,
    writing,
)
from vitrarium.data.source import Split

GIB = 2**30

Progress = Callable[[int, int], None]
"""Called with (examples done, examples in all)."""


class TooLarge(Exception):
    """The decoded split would exceed the limit."""


class Busy(Exception):
    """Another process holds the lock."""


def default_folder() -> Path:
    """``$VITRARIUM_CACHE``, or ``~/.cache/vitrarium``."""
    given = os.environ.get("VITRARIUM_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "vitrarium"


class CachedSplit(DerivedSplit):
    """A split whose decoded examples are kept, or, where they would be too many, decoded on demand.

    Args:
        inner: the split of the data set.
        rows: its encoded examples, or None to decode on demand.
        folder: where the rows lie, or None if they are in memory.
        why: why they are where they are, for :meth:`describe`.
    """

    def __init__(self, inner: Split, rows: Rows | None, folder: Path | None = None, why: str = "") -> None:
        super().__init__(inner)
        self.rows, self.folder, self.why = rows, folder, why

    def sample(self, index: int) -> Sample:
        """Example ``index``; image and map are read-only views of what all workers share."""
        return self.inner.sample(index) if self.rows is None else decode(self.rows, index)

    def describe(self) -> str:
        """In words: how many examples, how large, and where they are kept."""
        count = f"{len(self):,} examples"
        if self.rows is None:
            return f"{count}, decoded on demand ({self.why})"
        size = sum(array.nbytes for array in self.rows.values()) / 1e6
        where = f"memory-mapped from {self.folder}" if self.folder else "in memory"
        return f"{count}, {size:,.1f} MB decoded, {where}" + (f" ({self.why})" if self.why else "")

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not forked: mapped rows are opened again there instead of being sent."""
        return {**self.__dict__, "rows": None if self.folder else self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.folder is not None:
            self.rows = open_rows(self.folder, len(self))


def cached(
    split: Split,
    folder: Path | None,
    key: str,
    limit_bytes: int = 4 * GIB,
    progress: Progress | None = None,
) -> CachedSplit:
    """Decode every example of a split once.

    The rows lie in ``folder/key`` as memory-mapped files, shared by workers and processes through the page cache.
    They are written beside and renamed under a lock: of several processes one builds and the others wait, and what a
    killed process left is removed and built again. Nothing is ever deleted that another key made; the folder may be
    removed at any time.

    Args:
        split: what to decode.
        folder: the cache; None keeps the rows in memory. If it cannot be written to (read-only, full disk), the
            rows are kept in memory too, with a warning.
        key: names the content; two splits with one key must be equal. Use the fingerprint of the source and the split.
        limit_bytes: a split that is larger when decoded is not kept but decoded on demand;
            :meth:`CachedSplit.describe` says so.
        progress: called now and then with (done, all).

    Raises:
        UserError: an example that cannot be read, with its file.
    """
    if len(split) == 0:
        return CachedSplit(split, None, why="it is empty")
    try:
        return CachedSplit(
            split, *kept_rows(folder, key, len(split), lambda writer: _fill(writer, split, limit_bytes, progress))
        )
    except TooLarge as error:
        return CachedSplit(split, None, why=str(error))


def kept_rows(
    folder: Path | None, key: str, count: int, fill: Callable[[RowWriter], None], what: str = "decoded images"
) -> tuple[Rows, Path | None, str]:
    """``count`` rows (of ``what``) that ``fill`` writes, unless they lie in ``folder/key`` already; see :func:`cached`.

    Returns:
        The rows, where they lie (None: in memory), and why they are not where they should be, if so.

    Raises:
        Whatever ``fill`` raises; nothing is kept then.
    """
    why = ""
    if folder is not None:
        try:
            rows, target = _on_disk(Path(folder), _file_name(key), count, fill)
            return rows, target, why
        except NotWritable as error:
            why = f"the cache '{folder}' cannot be written: {error}"
            warnings.warn(f"{why}; {what} are kept in memory instead", stacklevel=3)
    writer = MemoryWriter()
    fill(writer)
    return writer.rows(), None, why


def _file_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", key)


def _on_disk(folder: Path, key: str, count: int, fill: Callable[[RowWriter], None]) -> tuple[Rows, Path]:
    target = folder / key
    rows = open_rows(target, count)
    if rows is None:
        with writing():
            folder.mkdir(parents=True, exist_ok=True)
        with locked(lock_of(folder, key)):
            # Another process may have built it while this one waited.
            rows = open_rows(target, count)
            if rows is None:
                _remove_remains(folder, key)
                with FolderWriter(folder / beside_name(key), target) as writer:
                    fill(writer)
                    writer.finish()
                rows = open_rows(target, count)
    if rows is None:
        raise NotWritable("what was written cannot be read back")
    # The time tells when an entry was last used; a cache that may only be read keeps that of its making.
    with contextlib.suppress(OSError):
        os.utime(target / ABOUT)
    return rows, target


def _fill(writer: RowWriter, split: Split, limit: int, progress: Progress | None) -> None:
    """Decode everything into ``writer``; gives up as soon as the limit is certain to be exceeded."""
    count, told = len(split), time.monotonic()
    for done, sample in enumerate(in_order(split), start=1):
        writer.append(sample)
        # Rows are equally large, human maps aside, so the first one already tells what it takes at least.
        maps = 0 if sample.human_map is None else sample.human_map.nbytes
        if writer.size > limit or (done == 1 and (writer.size - maps) * count > limit):
            raise TooLarge(f"it takes more than the limit of {limit / GIB:.3g} GiB")
        if progress is not None and (done == count or time.monotonic() - told > 0.2):
            told = time.monotonic()
            progress(done, count)


def lock_of(folder: Path, key: str) -> Path:
    """The file that is locked by whoever builds or removes an entry."""
    return folder / f"{key}.lock"


def beside_name(key: str) -> str:
    """What an entry is called while this process writes or removes it."""
    return f"{key}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock; where the file system knows no locks the rename alone keeps the cache whole.

    Raises:
        Busy: another process holds it, and this one is not to wait.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with writing():
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(path) from error
        except OSError:
            pass
        yield


def _remove_remains(folder: Path, key: str) -> None:
    """Remove a damaged cache, and what processes of this machine that are no longer alive left unfinished."""
    with writing():
        if (folder / key).exists():
            shutil.rmtree(folder / key)
    for part in folder.glob(f"{key}.{socket.gethostname()}.*.part"):
        process = part.name.split(".")[-3]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(part, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
