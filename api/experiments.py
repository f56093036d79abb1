"""Experiments: presets x seeds x sweeps, trained in order of dependency, measured, compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vitrarium.configs.compose import compose, compose_experiment, options, to_plain
from vitrarium.configs.errors import UserError, closest
from vitrarium.runs import build_data, build_source_of

if TYPE_CHECKING:
    from vitrarium.eval.report import Comparison


@dataclass
class Planned:
    """A run that an experiment wants.

    Attributes:
        folder: where it goes.
        overrides: what its ``vitrarium train`` is called with.
        after: folder of the run it starts from, or None.
        config: its composed configuration.
    """

    folder: Path
    overrides: list[str]
    config: dict[str, Any] = field(repr=False)
    after: Path | None = None


def experiment(
    name: str, *overrides: str, out: str | Path | None = None, folders: Sequence[str | Path] = ()
) -> tuple[Comparison, Path]:
    """Train and measure every run of an experiment, then compare them.

    Finished runs are not trained again, measured runs are not measured again; an interrupted experiment goes on where
    it stopped when it is called again.

    Args:
        name: of a shipped experiment, or a path to a YAML file.
        overrides: ``workers=1`` or ``seeds=[0,1]`` change the experiment, ``sweep.KEY=a,b`` sweeps a key, all others go
            to every run.
        out: folder of the experiment; default ``runs/<name>``.
        folders: folders with further configuration groups.

    Returns:
        The comparison and the path of its ``index.html``.

    Raises:
        UserError: naming each run that failed and why, after the others are done.
        Interrupted: stopped by Ctrl-C; the runs' states are saved.
    """
    from vitrarium.comparing import compare
    from vitrarium.pool import run_all

    settings: dict[str, Any] = OmegaConf.to_container(compose_experiment(name, overrides, folders))  # type: ignore[assignment]
    out = Path(out) if out is not None else Path("runs") / Path(name).stem
    plan = plan_runs(settings, out, folders)
    warm_caches(plan)
    run_all(plan, settings["workers"], folders)
    comparison = compare(
        [p.folder for p in plan],
        title=settings["title"],
        about=settings["about"],
        baseline=settings["baseline"],
        examples=settings["examples"],
        command=" ".join(["vitrarium", "experiment", name, *overrides]),
    )
    return comparison, comparison.report(out / "report")


def plan_runs(settings: dict[str, Any], out: Path, folders: Sequence[str | Path] = ()) -> list[Planned]:
    """All runs of an experiment; a run that starts from another comes after it."""
    plan: list[Planned] = []
    for preset in settings["presets"]:
        seeds = sorted({*settings["seeds"], *settings["more_seeds"].get(preset, [])})
        for seed in seeds:
            plan.append(_planned(preset, seed, {}, settings, out, folders))
        sweep = settings["sweep"].get(preset, {})
        for values in itertools.product(*sweep.values()):
            if sweep:
                swept = dict(zip(sweep, values, strict=True))
                plan.append(_planned(preset, seeds[0], swept, settings, out, folders))
    known = options("model", folders)
    for preset in settings["own_overrides"]:
        # One that is left out this time (presets=[...]) may still have overrides of its own.
        if preset not in {*known, *settings["presets"]}:
            raise UserError(f"own_overrides names '{preset}', which is no preset", closest(preset, known))
    for preset in [*settings["more_seeds"], *settings["sweep"]]:
        if preset not in settings["presets"]:
            raise UserError(f"the experiment names '{preset}', which is not among its presets", "add it to presets")
    return _in_order(_distinct(plan), out)


def _planned(
    preset: str,
    seed: int,
    swept: dict[str, Any],
    settings: dict[str, Any],
    out: Path,
    folders: Sequence[str | Path],
) -> Planned:
    general = [*settings["overrides"], *settings["own_overrides"].get(preset, [])]
    overrides = [f"model={preset}", *general, f"seed={seed}", *(f"{k}={v}" for k, v in swept.items())]
    overrides += [f"sweep={{{', '.join(f'{k}: {v}' for k, v in swept.items())}}}"] if swept else []
    config = to_plain(compose(overrides, folders=folders))
    suffix = "".join(f"-{k.rpartition('.')[2]}={v}" for k, v in swept.items())
    return Planned(out / f"{preset}-{config['data']['name']}{suffix}-{seed}", overrides, config)


def _distinct(plan: list[Planned]) -> list[Planned]:
    """One run per folder: a sweep may name what the seeds already hold."""
    return list({p.folder: p for p in plan}.values())


def _in_order(plan: list[Planned], out: Path) -> list[Planned]:
    """Resolve ``init_from: <preset>`` to the run of that preset with the same seed, and sort by it."""
    from vitrarium.models.zoo import animal_folder

    by_preset = {(p.config["model"]["preset"], p.config["seed"]): p for p in plan if not p.config["sweep"]}
    for planned in plan:
        wanted = planned.config["init_from"]
        if wanted is None or Path(wanted).exists() or animal_folder(wanted):
            continue
        parent = by_preset.get((wanted, planned.config["seed"]))
        if parent is None:
            raise UserError(
                f"'{planned.folder.name}' starts from '{wanted}' (seed {planned.config['seed']}), which is not planned",
                "add that preset to the experiment",
            )
        planned.after = parent.folder
        planned.overrides.append(f"init_from={parent.folder}")
        planned.config["init_from"] = str(parent.folder)
    ordered: list[Planned] = []
    waiting = list(plan)
    while waiting:
        ready = [p for p in waiting if p.after is None or p.after in {o.folder for o in ordered}]
        if not ready:
            raise UserError("the presets start from each other in a circle", "check their init_from")
        ordered += ready
        waiting = [p for p in waiting if p not in ready]
    return ordered


def warm_caches(plan: Sequence[Planned]) -> None:
    """Decode each data set once before several processes ask for it, and find its faults before hours are spent."""
    seen = set()
    for planned in plan:
        key = repr(planned.config["data"])
        if key not in seen and not (planned.folder / "evaluation" / "results.csv").exists():
            seen.add(key)
            data = build_data(planned.config, build_source_of(planned.config))
            for split in data.source.splits:
                data.split(split)
