"""Images packed into one npz file: JPEG files end to end, and what is known of each."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrarium.configs.errors import UserError
from vitrarium.data.preprocessing import open_rgb
from vitrarium.data.sets.stored import Pictures

_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Packed(Pictures):
    """The images of an npz file.

    Attributes:
        path: of the file.
        jpeg: (bytes,) uint8, all image files end to end.
        offsets: (N + 1,) int64; image i is ``jpeg[offsets[i]:offsets[i + 1]]``.
        fields: what else is known, by name: (N, ...) each.
        names: what each image is called, or None: by its number.
    """

    path: Path
    jpeg: np.ndarray
    offsets: np.ndarray
    fields: dict[str, np.ndarray]
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def open(self, index: int) -> Image.Image:
        """Decode image ``index``."""
        return open_rgb(self._bytes(index), self.where(index))

    def name(self, index: int) -> str:
        """Its name in the original data set, or file and number."""
        return f"{self.path.name} #{index}" if self.names is None else str(self.names[index])

    def where(self, index: int) -> str:
        """File and number."""
        return f"{self.path} image {index}"

    def digests(self) -> list[str]:
        """Of the JPEG files."""
        return [hashlib.sha256(self._bytes(i)).hexdigest() for i in range(len(self))]

    def _bytes(self, index: int) -> bytes:
        return self.jpeg[self.offsets[index] : self.offsets[index + 1]].tobytes()


def read_packed(path: Path, fields: Sequence[str] = (), whole: Sequence[str] = (), names: str | None = None) -> Packed:
    """Read an npz file with ``jpeg`` and ``offsets``; nothing in it is executed.

    Args:
        path: of the file.
        fields: further arrays that hold one entry for each image.
        whole: further arrays of any length.
        names: the array that names the images.

    Raises:
        UserError: no such file, a damaged one, a missing array, arrays that do not fit together.
    """
    wanted = ["jpeg", "offsets", *fields, *whole, *([names] if names else [])]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in wanted if name not in file.files]
            if missing:
                raise UserError(f"'{path}' has no array '{missing[0]}' (it has: {', '.join(file.files)})", _AGAIN)
            arrays = {name: file[name] for name in wanted}
    except FileNotFoundError as error:
        raise UserError(f"the file '{path}' is missing", "complete the data set") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read as npz ({error})", _AGAIN) from error
    jpeg, offsets = arrays.pop("jpeg"), arrays.pop("offsets").astype(np.int64)
    count = len(offsets) - 1
    right = offsets.ndim == jpeg.ndim == 1 and jpeg.dtype == np.uint8 and count > 0
    if not right or offsets[0] < 0 or (np.diff(offsets) <= 0).any() or offsets[-1] > len(jpeg):
        raise UserError(f"'{path}': offsets do not cut the array jpeg into images", _AGAIN)
    for name in (*fields, *([names] if names else [])):
        if arrays[name].shape[:1] != (count,):
            raise UserError(f"'{path}': {name} has the shape {arrays[name].shape}, for {count} images", _AGAIN)
    return Packed(path, jpeg, offsets, arrays, None if names is None else arrays.pop(names).tolist())
