"""What all benchmarks share: taking turns, medians with spread, peak memory, one table and one file of records."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vitrarium.configs.files import write_text

FIELDS = ("name", "ours", "theirs", "ratio", "target", "difference", "note")


def interleave(functions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Time functions in turn, so that a machine that slows down slows all of them.

    Args:
        functions: what is timed, by name.
        rounds: how often each is timed.
        warmup: rounds before that, which are not counted.

    Returns:
        Seconds of each round, by name.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing")
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-warmup, rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds = time.perf_counter() - began
            if turn >= 0:
                times[name].append(seconds)
    return times


def median_spread(times: Sequence[float]) -> tuple[float, float]:
    """Median, and the distance between the quartiles (between the ends for fewer than four)."""
    if len(times) < 4:
        return statistics.median(times), max(times) - min(times)
    first, _, third = statistics.quantiles(times, n=4)
    return statistics.median(times), third - first


def peak_memory_mb() -> float:
    """Largest resident memory of this process, or of a worker if one was larger, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit / 1e6


def report(records: Sequence[Mapping[str, Any]], json_path: str | Path | None = None) -> None:
    """Print the records as a table, and write them as JSON if a path is given; the file appears whole or not at all.

    Args:
        records: ``{name, ours, theirs, ratio, target, difference, note}``; what does not apply is None.
        json_path: the file, or None.
    """
    table = Table(caption=f"{torch.get_num_threads()} torch thread(s), peak memory {peak_memory_mb():,.0f} MB")
    for field in FIELDS[:-1]:
        table.add_column(field, justify="left" if field == "name" else "right", overflow="fold")
    for record in records:
        table.add_row(*(_cell(record.get(field)) for field in FIELDS[:-1]))
    console = Console()
    console.print(table)
    for note in dict.fromkeys(record.get("note") for record in records):
        if note:
            # One note may belong to several rows; it is printed once, under the names of all of them.
            names = ", ".join(str(record["name"]) for record in records if record.get("note") == note)
            console.print(f"{names}: {note}", markup=False, highlight=False)
    if json_path is not None:
        kept = [{field: record.get(field) for field in FIELDS} for record in records]
        write_text(json_path, json.dumps(kept, indent=2) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
