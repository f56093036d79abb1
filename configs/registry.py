"""Named things: one small registry class for every kind of part in the house."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, TypeVar

from vitrarium.configs.errors import UserError, closest

T = TypeVar("T")

PLUGIN_GROUP = "vitrarium.plugins"
_plugins: dict[str, str] | None = None

# Told at level INFO what was loaded; the command line shows it on standard error.
plugin_logger = logging.getLogger(PLUGIN_GROUP)


def load_plugins() -> dict[str, str]:
    """Import other people's packages that registered under the entry point ``vitrarium.plugins``.

    Returns:
        Plugin name to module, in order of name. Each is imported once per process.
    """
    global _plugins
    if _plugins is None:
        _plugins = {}
        for point in sorted(importlib.metadata.entry_points(group=PLUGIN_GROUP), key=lambda p: p.name):
            try:
                point.load()
            except Exception as error:
                raise UserError(
                    f"plugin '{point.name}' ({point.value}) could not be loaded: {error}",
                    "mend or uninstall the package that offers it",
                ) from error
            _plugins[point.name] = point.value
            plugin_logger.info("plugin %s (%s) loaded", point.name, point.value)
    return _plugins


class Registry:
    """Explicit snake_case names for classes and functions, with helpful refusals.

    Args:
        kind: what is registered, in the singular ("evidence", "policy"); used in messages.
        modules: modules that register something; imported at the first look-up, in this order.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("circle")
        ... class Circle: ...
        >>> shapes.list()
        ['circle']
    """

    def __init__(self, kind: str, modules: Iterable[str] = ()) -> None:
        self.kind = kind
        self._modules = list(modules)
        self._entries: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a class or function under ``name``; a second holder of a name is an error.

        The same definition made again (a notebook cell that is run twice, a module that is reloaded) takes the place of
        the older one.
        """
        if not name.isidentifier() or name != name.lower():
            raise ValueError(f"{self.kind} names are snake_case identifiers, got {name!r}")

        def file(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _definition(known) != _definition(entry):
                raise ValueError(f"{self.kind} {name!r} is registered twice: {known!r} and {entry!r}")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return file

    def get(self, name: str) -> Callable[..., Any]:
        """The entry called ``name``; an unknown name is a :class:`UserError` with the closest ones."""
        self._load()
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} '{name}'", closest(name, self._entries))
        return self._entries[name]

    def build(self, spec: Mapping[str, Any] | str, **given: Any) -> Any:
        """Call the entry named by ``spec`` (a name, or a mapping ``{name, **options}``).

        Args:
            spec: what the user wrote. Unknown or missing options are refused by name.
            given: what the house offers (channels, concepts ...): an entry is handed what its signature names of it,
                and none of it is the user's to set.
        """
        name, options = self.check(spec, given)
        entry = self.get(name)
        parameters = inspect.signature(entry).parameters
        return entry(**options, **{key: value for key, value in given.items() if key in parameters})

    def check(self, spec: Mapping[str, Any] | str, given: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
        """Name and options of ``spec`` after checking them against the entry's signature."""
        options = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in options:
            raise UserError(f"a {self.kind} needs a name", f"choose one of: {', '.join(self.list())}")
        name = str(options.pop("name"))
        check_options(self.get(name), options, given, f"{self.kind} '{name}'")
        return name, options

    def list(self, pattern: str = "*") -> list[str]:
        """Names that match the shell pattern, sorted."""
        self._load()
        return sorted(name for name in self._entries if fnmatch(name, pattern))

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                importlib.import_module(module)
            load_plugins()

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._entries


def _definition(entry: Any) -> Any:
    """What two makings of one definition have in common; for what has no name, the thing itself."""
    names = getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
    return entry if None in names else names


def check_options(entry: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str], what: str) -> None:
    """Refuse options that ``entry`` does not take, and say which required ones are missing."""
    given = set(given)
    parameters = inspect.signature(entry).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    settable = [name for name in parameters if name not in given]
    for option in options:
        if option not in settable:
            raise UserError(f"{what} has no option '{option}'", closest(option, settable))
    for name in settable:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise UserError(f"{what} needs the option '{name}'", f"set {name}=...")
