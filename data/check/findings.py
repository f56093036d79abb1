"""What a check has to say: one finding each, with a severity, a message and a cure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("error", "warning", "note")
"""From what stops a training, over what makes its numbers doubtful, to what is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: one of :data:`SEVERITIES`.
        kind: short stable name ("broken_file", "rare_class"), for programs.
        message: what was found, in a sentence.
        cure: what to do about it; empty where there is nothing to do.
        items: all that it is about, by name: files, table lines, classes, concepts.
    """

    severity: str
    kind: str
    message: str
    cure: str = ""
    items: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"unknown severity {self.severity!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {**asdict(self), "items": list(self.items)}


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise in the order in which they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def counted(count: int, one: str, many: str = "") -> str:
    """``3 images``, ``1 image``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
