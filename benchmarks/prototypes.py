"""The prototype family against the method as it is usually released: the same tensors, the same results, less time.

    python benchmarks/prototypes.py                       # a few minutes on two cores
    python benchmarks/prototypes.py --only tree --quick   # one group, small sizes
    python benchmarks/prototypes.py --json prototypes.json

What we are compared with is written anew from the formula, in the way the released code goes about it; `cabrnet`
(LGPL) is compared with where it is installed, and is no dependency. Each row times both in turn, on the CPU, with the
thread count that is printed below the table (OMP_NUM_THREADS sets it); the largest difference of the results stands
beside the ratio, and the note says what memory they need. Released code aims at graphics processors: ratios there are
others.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from common import report

GROUPS = {
    "similarity": "prototype_similarity",
    "search": "prototype_search",
    "statistics": "prototype_statistics",
    "tree": "prototype_tree",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, action="append", help="one group; repeatable (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, and no ratios to quote")
    parser.add_argument("--json", metavar="FILE", help="also write the records")
    given = parser.parse_args()
    records: list[dict[str, Any]] = []
    for group in given.only or GROUPS:
        records += importlib.import_module(GROUPS[group]).rows(given.quick)
    report(records, given.json)


if __name__ == "__main__":
    main()
