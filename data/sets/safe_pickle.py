"""Reading pickles of plain arrays without executing anything: all that is no number, text or container is refused."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from vitrarium.configs.errors import UserError

MAX_BYTES = 1 << 30

_KINDS = re.compile(r"[uif][1248]")


class _Array:
    """What stands for a numpy array while unpickling: its state is kept, no code of numpy sees it."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def restored(self) -> np.ndarray:
        if not isinstance(self.dtype, _Dtype) or not _KINDS.fullmatch(self.dtype.code):
            raise ValueError("an array of something else than numbers")
        order = ">" if self.dtype.order == ">" else "<"
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        flat = np.frombuffer(raw, np.dtype(order + self.dtype.code))
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class _Dtype:
    """What stands for a numpy type: its code ("u1") and byte order."""

    order = "<"

    def __init__(self, code: str, *_: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in the old protocols."""
    return text.encode("latin1")


_ALLOWED = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
}


# The unpickler written in Python: that in C reserves as much memory as a damaged file says.
class _Unpickler(pickle._Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Only what an array is made of; everything else could run code."""
        wanted = f"{module}.{name}"
        if wanted not in _ALLOWED:
            raise UserError(
                f"'{self._path}' asks for '{wanted}' while it is unpickled, which arrays and text never do",
                "do not trust this file: get it again from its official source",
            )
        return _ALLOWED[wanted]


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of numbers, text, lists and numeric arrays, as Python 2 or 3 wrote it.

    Nothing in the file is executed, whatever it holds. Text of Python 2 is read as Latin-1; keys are text.

    Raises:
        UserError: no such file, a damaged one, or one that asks for anything else, which is named.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"'{path}' has more than {MAX_BYTES >> 20} MB", "it is no batch of images: replace it")
        found = _Unpickler(path.read_bytes(), path).load()
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, no dictionary")
        return {_text(key): _restored(value) for key, value in found.items()}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"the file '{path}' is missing", "complete the data set") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error})", "check its permissions") from error
    except Exception as error:
        # A damaged pickle can fail in any way: it is a program for a small machine.
        raise UserError(f"'{path}' cannot be unpickled ({error})", "the file is damaged: get it again") from error


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _restored(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.restored()
    if isinstance(value, list):
        return [_restored(one) for one in value]
    return _text(value) if isinstance(value, bytes) else value
