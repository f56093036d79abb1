"""Names, shapes and composition of configurations."""

from vitrarium.configs.errors import Interrupted, UserError, closest
from vitrarium.configs.registry import Registry

__all__ = ["Interrupted", "Registry", "UserError", "closest"]
