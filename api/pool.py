"""Train several runs at the same time, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vitrarium.configs.errors import Interrupted, UserError
from vitrarium.runs import differences, read_config, read_progress

if TYPE_CHECKING:
    from vitrarium.experiments import Planned

console = Console(stderr=True, highlight=False, markup=False)


def run_all(plan: Sequence[Planned], workers: int, folders: Sequence[str | Path] = ()) -> None:
    """Train and measure the runs of ``plan`` in its order, ``workers`` at a time, each on its share of the cores.

    Raises:
        UserError: the runs that failed with the last line each of them said; the others are done.
        Interrupted: Ctrl-C; it is passed on to the runs, and they have saved their state.
    """
    workers = max(1, min(workers, os.cpu_count() or 1))
    waiting = [p for p in plan if not is_done(p.folder)]
    refuse_changed(plan)
    if len(waiting) < len(plan):
        console.print(f"{len(plan) - len(waiting)} of {len(plan)} runs are finished and kept")
    running: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[Path, str] = {}
    try:
        while waiting or running:
            for planned in [p for p in waiting if p.after is not None and p.after in failed]:
                failed[planned.folder] = f"it starts from {planned.after}, which failed"
                waiting.remove(planned)
            ready = [p for p in waiting if p.after is None or is_done(p.after)]
            while ready and len(running) < workers:
                planned = ready.pop(0)
                waiting.remove(planned)
                running[planned.folder] = (_start(planned, workers, folders), time.monotonic())
                console.print(f"{len(plan) - len(waiting):>3}/{len(plan)} {planned.folder}")
            _collect(running, failed)
    except KeyboardInterrupt as error:
        _stop(running)
        raise Interrupted("the experiment was stopped; call it again to go on") from error
    if failed:
        said = "; ".join(f"{folder}: {why}" for folder, why in failed.items())
        raise UserError(f"{len(failed)} of {len(plan)} runs failed: {said}", "each folder holds its log.txt")


def refuse_changed(plan: Sequence[Planned]) -> None:
    """Refuse folders whose runs were begun with another configuration, before anything is trained."""
    for planned in plan:
        if (planned.folder / "config.yaml").is_file():
            changed = differences(read_config(planned.folder), planned.config)
            if changed:
                raise UserError(
                    f"'{planned.folder}' holds a run with another configuration ({', '.join(changed[:5])})",
                    "choose another folder with -o, or remove that run",
                )


def is_done(folder: Path) -> bool:
    """Trained and measured."""
    return bool(read_progress(folder).get("finished")) and (folder / "evaluation" / "results.csv").exists()


def _start(planned: Planned, workers: int, folders: Sequence[str | Path]) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    planned.folder.parent.mkdir(parents=True, exist_ok=True)
    log = planned.folder.with_name(planned.folder.name + ".log")
    command = [sys.executable, "-m", "vitrarium", "train", *planned.overrides, "-o", str(planned.folder)]
    command += ["--resume", "--evaluate", *(part for f in folders for part in ("--configs", str(f)))]
    with log.open("ab") as file:
        # A process group of its own, so that Ctrl-C reaches it once, from us.
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def _collect(running: dict[Path, tuple[subprocess.Popen[bytes], float]], failed: dict[Path, str]) -> None:
    """Wait a moment for the oldest run, then file all that have ended."""
    oldest = next(iter(running.values()), None)
    if oldest is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            oldest[0].wait(timeout=0.5)
    for folder in [f for f, (process, _) in running.items() if process.poll() is not None]:
        process, began = running.pop(folder)
        log = folder.with_name(folder.name + ".log")
        if process.returncode == 0:
            console.print(f"    {folder.name} done in {time.monotonic() - began:.0f} s")
        else:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            failed[folder] = lines[-1] if lines else f"exit status {process.returncode}"
            console.print(f"    {folder.name} failed: {failed[folder]}")
        if folder.is_dir():
            log.replace(folder / "log.txt")


def _stop(running: dict[Path, tuple[subprocess.Popen[bytes], float]]) -> None:
    """Pass the interruption on, and wait until the states are saved."""
    for process, _ in running.values():
        process.send_signal(signal.SIGINT)
    for process, _ in running.values():
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
