"""Which packages a configuration may name code of, and how a named class is found.

A configuration or a model folder may come from anywhere, and importing a module executes it. So what it names is
imported only from packages on a list that it cannot change: three built in, the others by whoever runs the program.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vitrarium.configs.errors import UserError, closest

BUILT_IN = ("timm", "torchvision.models", "vitrarium")
VARIABLE = "VITRARIUM_ALLOW"


def allow(*packages: str) -> None:
    """Let configurations and model folders name classes of these packages, from now on and in child processes.

    The same as naming them, separated by commas, in the environment variable ``VITRARIUM_ALLOW``.

    Args:
        packages: importable names; ``mypkg`` also allows ``mypkg.nets``.

    Raises:
        UserError: something that cannot be the name of a package.
    """
    for package in packages:
        if not package or not all(step.isidentifier() for step in package.split(".")):
            raise UserError(f"'{package}' is no name of a package", "write it as in an import statement: mypkg.nets")
    # The environment is the one place: child processes (workers, other devices) see the same list.
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*allowed_by_user(), *packages]))


def allowed_by_user() -> list[str]:
    """The packages that ``VITRARIUM_ALLOW`` and :func:`allow` name."""
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def is_built_in(module: str) -> bool:
    """Whether a module belongs to the packages that are allowed without being asked."""
    return covered(module, BUILT_IN)


def is_allowed(module: str) -> bool:
    """Whether a module belongs to an allowed package."""
    return is_built_in(module) or covered(module, allowed_by_user())


def covered(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of the packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def home_of(found: Any) -> str:
    """The module that a thing belongs to."""
    if inspect.ismodule(found):
        return found.__name__
    if isinstance(found, functools.partial):
        return home_of(found.func)
    return str(getattr(found, "__module__", None) or type(found).__module__)


def find_named(path: str) -> Callable[..., Any]:
    """The class or function that a dotted path names; its module is imported, if that is allowed.

    Args:
        path: ``package.module.Name``. A package of the user's is also found in the current directory.

    Raises:
        UserError: a package that is not allowed (nothing of it is imported), an unknown name (with the closest), a
            module that cannot be imported, something that is neither class nor function.
    """
    steps = path.split(".")
    if len(steps) < 2 or not all(step.isidentifier() and not step.startswith("__") for step in steps):
        raise UserError(f"'{path}' names no class of a package", "write package.Name, such as mypkg.nets.Net")
    _refuse_foreign(path, path)
    if steps[0] not in sys.modules and covered(path, allowed_by_user()):
        _see_current_directory(steps[0])
    found, name = _import(path, steps)
    for step in steps[len(name.split(".")) :]:
        if not hasattr(found, step):
            raise UserError(f"{name} has no '{step}'", closest(step, _names(found)))
        parent, found, name = found, getattr(found, step), f"{name}.{step}"
        if not (inspect.ismodule(found) or _makes(found)):
            raise UserError(
                f"'{name}' is a {type(found).__name__}, neither class nor function", closest("", _names(parent))
            )
        # A module inside a module (somebody's "import os") and a class from elsewhere are not the package's own.
        _refuse_foreign(home_of(found), path)
    if inspect.ismodule(found):
        raise UserError(f"'{path}' is a module, neither class nor function", closest("", _names(found)))
    return found


def _makes(found: Any) -> bool:
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, functools.partial)


def _refuse_foreign(module: str, path: str) -> None:
    """Refuse code of a package that is not on the list."""
    if is_allowed(module):
        return
    package = module.partition(".")[0]
    raise UserError(
        f"'{path}' would import and run code of the package '{package}', which is not allowed: nothing was imported"
        if module == path
        else f"'{path}' is code of the package '{package}', which is not allowed",
        f"if you trust it, allow it with {VARIABLE}={package} in the environment or vitrarium.allow('{package}') in "
        f"Python (allowed now: {', '.join([*BUILT_IN, *allowed_by_user()])})",
    )


def _see_current_directory(package: str) -> None:
    """Let a package in the current directory be imported, as ``python -m`` would; installed ones come first."""
    here = Path.cwd()
    if importlib.util.find_spec(package) is None and ((here / package).is_dir() or (here / f"{package}.py").is_file()):
        sys.path.append(str(here))
        importlib.invalidate_caches()


def _import(path: str, steps: list[str]) -> tuple[Any, str]:
    """The innermost module on the path, and its name."""
    name = ""
    module: Any = None
    for step in steps:
        deeper = f"{name}.{step}" if name else step
        if module is not None and not (hasattr(module, "__path__") and inspect.ismodule(getattr(module, step, module))):
            break
        try:
            if deeper not in sys.modules and importlib.util.find_spec(deeper) is None:
                break
            module = importlib.import_module(deeper)
        except Exception as error:
            # Anything can go wrong while foreign code is executed.
            raise UserError(
                f"'{path}': {deeper} cannot be imported ({type(error).__name__}: {error})", "mend it"
            ) from error
        name = deeper
    if module is None:
        raise UserError(
            f"'{path}': there is no package '{steps[0]}'", "install it, or call from the folder in which it lies"
        )
    return module, name


def _names(found: Any) -> list[str]:
    """The public classes and functions of a module or class that belong to its package."""
    own = home_of(found).partition(".")[0]
    entries = {name: getattr(found, name, None) for name in vars(found) if not name.startswith("_")}
    return [name for name, entry in entries.items() if _makes(entry) and home_of(entry).partition(".")[0] == own]
