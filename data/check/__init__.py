"""Checking a data set before anybody trains on it.

:func:`check_source` looks at a built :class:`~vitrarium.data.source.DataSource` and gives a :class:`DataCheck`: tables
of splits, classes, concepts and parts, and a list of :class:`Finding`. Nothing here prints. There is a file each for
what is found in classes, single concepts (``concepts``), concepts and classes together (``rules``), exact copies
(``copies``) and the decoded examples (``examples``, ``pixels``).
"""

from __future__ import annotations

from vitrarium.data.check.findings import Finding
from vitrarium.data.check.report import DataCheck, check_source

__all__ = ["DataCheck", "Finding", "check_source"]
