"""Names that people give to units which have none from the data: free axes, channels, learnt concepts, prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrarium.configs.errors import UserError
from vitrarium.data.corrections import EVERYWHERE
from vitrarium.models.units import UnitTable


def can_be_named(table: UnitTable, unit: int) -> bool:
    """Whether people may name a unit: not one that stands for something annotated, whose name the data give."""
    return table.truth == "none" or unit >= len(table) - table.free


def refuse_name(table: UnitTable, unit: int, name: str) -> None:
    """Refuse a name that a unit cannot have.

    A name is what people write before the equals sign of a correction (``--do name=value``), so it has none in itself.

    Args:
        table: the unit table.
        unit: position of the unit.
        name: what it is to be called.

    Raises:
        UserError: a unit whose name comes from the data; no text, an empty one, or one with an equals sign, a blank at
            an end, a line break or another character that cannot be printed; a name that means something else already.
    """
    old = table.names[unit]
    if not can_be_named(table, unit):
        raise UserError(
            f"'{old}' is an annotated {table.truth}: its name comes from the data", "rename it in the data and train"
        )
    if not isinstance(name, str) or not name or name != name.strip():
        raise UserError(f"'{old}' cannot be called {name!r}", "give a text that neither begins nor ends with a blank")
    if "=" in name or not name.isprintable():
        raise UserError(
            f"'{old}' cannot be called {name!r}: it could not be corrected by name (--do name=value)",
            "leave out equals signs and characters that cannot be printed",
        )
    taken = {*table.names, *(group.name for group in table.groups)} - {old}
    if name in taken:
        raise UserError(f"'{name}' is the name of another {table.kind}", "give each unit a name of its own")
    if name in EVERYWHERE or name.startswith("-"):
        raise UserError(f"'{old}' cannot be called '{name}'", "commands read that as something else")
    kind, _, number = name.rpartition("_")
    if kind == table.kind and number.isdigit() and int(number) != unit:
        raise UserError(f"'{name}' is what another {table.kind} without a name is called", "choose another name")


def with_names(table: UnitTable, names: Sequence[str]) -> UnitTable:
    """The table with other names; the data's own have to stay.

    Args:
        table: the unit table.
        names: (M,) names of all units, those that change and those that do not.

    Raises:
        UserError: another number of names, one given twice, another name for an annotated unit.
    """
    if len(names) != len(table):
        raise UserError(f"{len(names)} names are given for {len(table)} {table.kinds}", "give one for each")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise UserError(f"two {table.kinds} are called '{twice[0]}'", "give each unit a name of its own")
    groups, old = [], table.names
    for group in table.groups:
        first = group.members[0]
        changed = next((m for m in group.members if names[m] != old[m]), None)
        if changed is not None and not can_be_named(table, changed):
            raise UserError(f"the {table.truth} '{old[changed]}' is called '{names[changed]}'", "keep the data's name")
        groups.append(group if changed is None else replace(group, name=str(names[first])))
    return replace(table, groups=tuple(groups))
