"""Whether a value that a user wrote is of the kind that an option takes, by the annotation of the option."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

_PLAIN = (str, bool, int, float, list, tuple, dict, type(None))
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "None": "null",
    "Sequence[int]": "a list of whole numbers, such as [1, 2]",
    "Sequence[float]": "a list of numbers, such as [0.1, 1]",
    "Sequence[str]": "a list of words, such as [one, two]",
}


def mismatch(parameter: inspect.Parameter, value: Any) -> str:
    """What a parameter takes, in words, if a value is nothing of it; "" if it is, or if that cannot be told.

    A default is always taken. Only plain values (what YAML can say) and annotations made of plain kinds are judged:
    ``int``, ``float``, ``bool``, ``str``, ``None`` and sequences of these.
    """
    if parameter.annotation is inspect.Parameter.empty or not isinstance(value, _PLAIN) or value == parameter.default:
        return ""
    kinds = _kinds(parameter.annotation)
    if not all(kind in _WORDS for kind in kinds) or any(_fits(kind, value) for kind in kinds):
        return ""
    return " or ".join(_WORDS[kind] for kind in kinds)


def _kinds(annotation: Any) -> list[str]:
    """The members of a union, as names: ``int | None`` becomes int and None."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    kinds = [kind.strip().removeprefix("collections.abc.") for kind in text.split("|")]
    return [kind.replace("list[", "Sequence[") for kind in kinds]


def _fits(kind: str, value: Any) -> bool:
    if kind.startswith("Sequence["):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        return several and all(_fits(kind[len("Sequence[") : -1], one) for one in value)
    if kind == "None":
        return value is None
    if kind == "bool":
        return isinstance(value, bool) or value in (0, 1)
    if kind == "str":
        # YAML reads an unquoted 007 or yes as something else; names are made words where they are used.
        return isinstance(value, (str, bool, int, float))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return kind == "float" or float(value).is_integer()
