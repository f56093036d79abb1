"""Samples as rows of arrays, in memory or in files that all processes share through the page cache."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitrarium.data.batch import Sample

Rows = dict[str, np.ndarray]
"""Field to array (N, ...); ``human_map`` holds only the maps there are, and ``map_row`` (N,) says which (-1: none)."""

FORMAT = 1
ABOUT = "about.json"


class NotWritable(Exception):
    """The folder of the cache cannot be written to: read-only, full, or gone."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Tell the failures of writing from all others, such as a data set that cannot be read."""
    try:
        yield
    except OSError as error:
        raise NotWritable(f"{error.strerror or error}") from error


def encode(sample: Sample) -> Rows:
    """The fields of one sample as the rows they are stored in; part masks take one bit a pixel."""
    row: Rows = {"image": np.ascontiguousarray(sample.image), "label": np.array(sample.label, np.int64)}
    for name in ("concepts", "concept_weight", "keypoints"):
        value = getattr(sample, name)
        if value is not None:
            row[name] = np.ascontiguousarray(value, dtype=np.float32)
    if sample.part_masks is not None:
        # The number of parts is stored beside the bits: they alone could not tell it.
        row["part_masks"] = np.packbits(sample.part_masks > 127)
        row["parts"] = np.array(len(sample.part_masks), np.int64)
    if sample.human_map is not None:
        row["human_map"] = np.ascontiguousarray(sample.human_map)
    return row


def decode(rows: Rows, index: int) -> Sample:
    """Sample ``index`` of the rows; its arrays are read-only views where that is possible."""
    image = rows["image"][index]
    masks = None
    if "part_masks" in rows:
        parts, (height, width) = int(rows["parts"][index]), image.shape[:2]
        bits = np.unpackbits(rows["part_masks"][index], count=parts * height * width)
        masks = bits.reshape(parts, height, width) * np.uint8(255)
    place = int(rows["map_row"][index])
    return Sample(
        image=image,
        label=int(rows["label"][index]),
        concepts=rows["concepts"][index] if "concepts" in rows else None,
        concept_weight=rows["concept_weight"][index] if "concept_weight" in rows else None,
        human_map=rows["human_map"][place] if place >= 0 else None,
        part_masks=masks,
        keypoints=rows["keypoints"][index] if "keypoints" in rows else None,
        index=index,
    )


class RowWriter(ABC):
    """Collects encoded samples; every row of a field has the shape and type of the first.

    Attributes:
        size: bytes collected so far.
    """

    def __init__(self) -> None:
        self.size = self.count = self.maps = 0
        self.like: dict[str, tuple[tuple[int, ...], np.dtype]] = {}

    def append(self, sample: Sample) -> None:
        """Add the next sample.

        Raises:
            ValueError: a sample that differs from the first in its fields, shapes or types: an error of the data set.
        """
        row = encode(sample)
        row["map_row"] = np.array(self.maps if "human_map" in row else -1, np.int64)
        self.append_row(row)

    def append_row(self, row: Rows) -> None:
        """Add the next row, whatever its fields; they are the same in every row.

        Raises:
            ValueError: as :meth:`append`.
        """
        missing = self.like.keys() - row.keys() - {"human_map"}
        if missing:
            raise ValueError(f"sample {self.count} has no {', '.join(sorted(missing))}, unlike those before it")
        for name, array in row.items():
            like = (array.shape, array.dtype)
            if name != "human_map" and self.count and name not in self.like:
                raise ValueError(f"sample {self.count} has {name}, unlike those before it")
            if self.like.setdefault(name, like) != like:
                raise ValueError(f"sample {self.count} has {name} {like}, those before it {self.like[name]}")
            self.write(name, array)
            self.size += array.nbytes
        self.count += 1
        self.maps += "human_map" in row

    @abstractmethod
    def write(self, name: str, array: np.ndarray) -> None:
        """Store one row of one field."""


class MemoryWriter(RowWriter):
    """Collects rows in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, bytearray] = {}

    def write(self, name: str, array: np.ndarray) -> None:
        """Append to the field's buffer."""
        self._buffers.setdefault(name, bytearray()).extend(array.tobytes())

    def rows(self) -> Rows:
        """The arrays, read-only."""
        rows = {}
        for name, (shape, dtype) in self.like.items():
            rows[name] = np.frombuffer(self._buffers[name], dtype).reshape(-1, *shape)
            rows[name].flags.writeable = False
        return rows


class FolderWriter(RowWriter):
    """Writes each field to a file of its own; :meth:`finish` renames the folder when all is on disk.

    Args:
        beside: the folder that is written, removed unless :meth:`finish` is reached.
        target: what it is called when it is complete.
    """

    def __init__(self, beside: Path, target: Path) -> None:
        super().__init__()
        self.beside, self.target = beside, target
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> FolderWriter:
        with writing():
            self.beside.mkdir(parents=True)
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Append to the field's file. A full disk is an error here; through a memory map it would end the process."""
        with writing():
            if name not in self._files:
                self._files[name] = (self.beside / f"{name}.bin").open("wb")
            self._files[name].write(array.tobytes())

    def finish(self) -> None:
        """Close the files, describe them, and give the folder its name."""
        fields = {
            name: {
                "shape": [self.maps if name == "human_map" else self.count, *shape],
                "type": dtype.str,
            }
            for name, (shape, dtype) in self.like.items()
        }
        with writing():
            for file in self._files.values():
                file.close()
            about = {"format": FORMAT, "count": self.count, "fields": fields}
            (self.beside / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
            try:
                self.beside.rename(self.target)
            except OSError:
                # Without working locks another process may have been first; then its rows are as good as these.
                if not self.target.exists():
                    raise

    def __exit__(self, *error: Any) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self.beside, ignore_errors=True)


def open_rows(folder: Path, count: int) -> Rows | None:
    """The rows in ``folder`` as read-only memory maps, or None if they are not there or not whole."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["count"] != count:
            return None
        rows = {}
        for name, field in about["fields"].items():
            shape, dtype = tuple(field["shape"]), np.dtype(field["type"])
            path = folder / f"{name}.bin"
            if path.stat().st_size != int(np.prod(shape)) * dtype.itemsize:
                return None
            # A plain array over the map: indexing the map itself makes a slow subclass for every row.
            rows[name] = np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))
        return rows
    except (OSError, ValueError, KeyError, TypeError):
        return None
