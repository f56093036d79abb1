"""What each verb of the command line does."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import vitrarium as vt
from vitrarium.configs.compose import compose, to_yaml
from vitrarium.configs.errors import UserError

# Whatever is printed may hold names of the user's: brackets in them are no markup.
console = Console(highlight=False, markup=False)


def train(given: argparse.Namespace) -> None:
    """``vitrarium train``."""
    if given.print_config:
        console.out(to_yaml(compose(given.overrides, given.config, given.configs)), end="")
        return
    with telling():
        run = vt.fit(*given.overrides, out=given.out, config=given.config, resume=given.resume, folders=given.configs)
    if given.evaluate and not (run.folder / "evaluation" / "results.csv").exists():
        vt.evaluate(run)
    from vitrarium.train.fit import first_process

    if first_process():
        say(f"model: {run.folder / 'model'}")


def predict(given: argparse.Namespace) -> int:
    """``vitrarium predict``."""
    from vitrarium.answering import STDIN, answer_paths, image_paths
    from vitrarium.answers import choose_form
    from vitrarium.predicting import predict_many

    images, live = image_paths(given.images), given.images == [STDIN]
    model, do = vt.load(given.run), pairs(given.do)
    options = {"batch_size": given.batch_size, "workers": given.workers, "eager": live}
    if given.resume and not given.out:
        raise UserError("--resume goes on with a file, and none is named", "name it with -o")
    if given.out or given.json or given.columns or live:
        form = choose_form(model, given.json, given.columns)
        tally = answer_paths(model, images, form, given.out, given.resume, do=do, strict=given.strict, **options)
        if given.out:
            say(f"written: {given.out} ({tally.images:,} images)")
        return 3 if tally.failed else 0
    for answer in predict_many(model, images, do, strict=True, fold=False, **options):
        print_prediction(answer.image, answer.prediction)
    return 0


def print_prediction(image: str, prediction: Any) -> None:
    """One answer as a table: what the model saw, and how much each unit speaks for the class."""
    table = Table(title=f"{image}: {prediction.label} ({prediction.probability:.1%})", title_justify="left")
    for column in ("unit", "value", "speaks for it"):
        table.add_column(column, justify="left" if column == "unit" else "right")
    ranked = sorted(prediction.contributions.items(), key=lambda item: -abs(item[1]))
    for name, contribution in ranked[:15]:
        mark = " (corrected)" if name in prediction.corrected else ""
        table.add_row(name + mark, f"{prediction.units[name]:.3f}", f"{contribution:+.3f}")
    console.print(table)
    others = ", ".join(f"{name} {p:.1%}" for name, p in list(prediction.probabilities.items())[1:4])
    say(f"then: {others}")
    if prediction.abstained:
        say(f"abstains: a confidence of {prediction.confidence:.3f} is not enough to answer")


def explain(given: argparse.Namespace) -> None:
    """``vitrarium explain``."""
    explanation = vt.explain(given.run, given.image, pairs(given.do), given.against)
    explanation.save(given.out)
    say(explanation.sentence())
    say(f"written: {given.out}")


def intervene(given: argparse.Namespace) -> None:
    """``vitrarium intervene``."""
    from vitrarium.eval.interventions import POLICIES

    policies = given.policy
    for policy in policies or ():
        POLICIES.get(policy)
    with working(f"correcting {given.run}"):
        curves = vt.intervene(given.run, policies, given.trials, given.split, given.out, given.root)
    rows = [row for curve in curves for row in curve.table()]
    columns = ("policy", "budget", "cost", "accuracy", "low", "high")
    print_table(rows, columns, "accuracy by number of corrected groups, and the mean price of asking about them")
    say(f"written: {Path(given.out or Path(given.run) / 'interventions')}")


def evaluate(given: argparse.Namespace) -> None:
    """``vitrarium evaluate``."""
    rule = {name: getattr(given, f"abstain_{name}") for name in ("risk", "coverage", "confidence")}
    for folder in given.runs:
        run = vt.Run(folder, root=given.root)
        if any(value is not None for value in rule.values()):
            say(f"{folder} {vt.set_threshold(run, **rule).words()}")
        with working(f"measuring {folder}"):
            evaluation = vt.evaluate(run, given.split)
        rows = [
            {"category": r.category, "metric": _named(r), "value": r.value, "low": r.low, "high": r.high}
            for r in evaluation.records
            if r.scope == "all"
        ]
        print_table(rows, ("category", "metric", "value", "low", "high"), f"{folder} on {given.split}")
        say(f"written: {Path(folder) / 'evaluation'}")


def _named(record: Any) -> str:
    """The metric, with its policy where it has one."""
    policy = record.choices.get("policy")
    return f"{record.metric} ({policy})" if policy else str(record.metric)


def compare(given: argparse.Namespace) -> None:
    """``vitrarium compare``."""
    with working("comparing"):
        comparison = vt.compare(given.runs, examples=given.examples, title=given.title)
        path = comparison.report(given.out)
    print_comparison(comparison)
    say(f"report: {path}")


def experiment(given: argparse.Namespace) -> None:
    """``vitrarium experiment``."""
    comparison, path = vt.experiment(given.name, *given.overrides, out=given.out, folders=given.configs)
    print_comparison(comparison)
    say(f"report: {path}")


def edit(given: argparse.Namespace) -> None:
    """``vitrarium edit``."""
    from vitrarium import edit_verbs

    edit_verbs.edit(given)


def prototypes(given: argparse.Namespace) -> int:
    """``vitrarium prototypes``."""
    from vitrarium import prototype_verbs

    return prototype_verbs.prototypes(given)


def axes(given: argparse.Namespace) -> None:
    """``vitrarium axes``."""
    from vitrarium import axes_verbs

    axes_verbs.axes(given)


def units(given: argparse.Namespace) -> None:
    """``vitrarium units``."""
    from vitrarium import unit_verbs

    unit_verbs.units(given)


def data(given: argparse.Namespace) -> int:
    """``vitrarium data check``, ``show`` and ``example``."""
    from vitrarium import data_verbs

    return int(getattr(data_verbs, given.action)(given))


def cache(given: argparse.Namespace) -> None:
    """``vitrarium cache`` and ``vitrarium cache clear``."""
    from vitrarium import cache_verbs

    (cache_verbs.clear if given.action == "clear" else cache_verbs.show)(given)


def export(given: argparse.Namespace) -> None:
    """``vitrarium export``."""
    from vitrarium.exporting import export_file, latencies

    with working(f"exporting {given.run}"):
        model, exported = export_file(given.run, given.format, given.out, not given.no_fold, given.force)
        ours, theirs = latencies(model, exported)
    say(str(exported.deployed))
    say(f"largest difference from the model: {exported.difference:.1e}")
    say(f"one image: {ours:.2f} ms as a model, {theirs:.2f} ms as a file (medians, in turn)")
    say(f"written: {exported.path} ({exported.bytes / 1e6:.1f} MB)")


def list_names(given: argparse.Namespace) -> None:
    """``vitrarium list``."""
    from vitrarium.listing import KINDS, about, names

    if given.kind is None:
        say("kinds: " + ", ".join(KINDS))
        return
    if given.show:
        if given.kind != "backbones":
            raise UserError("--show is for backbones", f"vitrarium list backbones --show {given.show}")
        show_backbone(given)
        return
    if given.size is not None or given.weights is not None:
        raise UserError("--size and --weights go with --show", "vitrarium list backbones --show NAME --weights FILE")
    found = names(given.kind, given.pattern)
    if not found:
        raise UserError(f"no {given.kind} match '{given.pattern}'", f"vitrarium list {given.kind}")
    width = max(len(n) for n in found)
    for name in found:
        said = about(given.kind, name)
        console.out(f"{name:<{width}}  {said}".rstrip())


def show_backbone(given: argparse.Namespace) -> None:
    """``vitrarium list backbones --show``: a name, a configuration of the group ``backbone``, or a YAML of one."""
    from vitrarium.listing import look_at_backbone

    with working(f"looking at {given.show}"):
        places, side, backbone, report = look_at_backbone(given.show, given.size, given.weights)
    rows = [{**place._asdict(), "map": f"{place.height} x {place.width}"} for place in places]
    rows = [{**row, "parameters": f"{row['parameters']:,}"} for row in rows]
    title = f"{given.show}, images of {side} x {side} x {backbone.in_channels}"
    print_table(rows, ("cut", "channels", "stride", "map", "parameters"), title)
    if backbone.note:
        say(f"it {backbone.note}")
    if report is None:
        return
    say(str(report))
    for what, missed in report.unmatched().items():
        for name in missed:
            console.out(f"  {what}: {name}")


@contextlib.contextmanager
def telling(name: str = "vitrarium", form: str = "%(message)s") -> Iterator[None]:
    """What the package, or one logger of it, has to say on its way (which weights matched), on standard error."""
    ours = logging.getLogger(name)
    handler, level, passes = logging.StreamHandler(sys.stderr), ours.level, ours.propagate
    handler.setFormatter(logging.Formatter(form))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    # Said here, and not a second time by a logger above.
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = passes


def say(line: str, style: str = "") -> None:
    """One line, however long the names in it are."""
    console.print(line, style=style, soft_wrap=True)


def working(what: str) -> contextlib.AbstractContextManager[Any]:
    """A spinner on a terminal, nothing elsewhere."""
    errors = Console(stderr=True)
    return errors.status(what) if errors.is_terminal else contextlib.nullcontext()


def pairs(given: Iterable[str]) -> dict[str, str]:
    """``["a=b"]`` as ``{"a": "b"}``; the name may itself hold an equals sign ("petal_colour=red=yes").

    Several boxes that one unit is banned from are put together.
    """
    found: dict[str, str] = {}
    for pair in given:
        name, sign, value = pair.rpartition("=")
        if not sign or not name:
            raise UserError(f"'{pair}' is no correction", "write --do name=value")
        if name in found and value.startswith("ban:") and found[name].startswith("ban:"):
            value = f"{found[name]}+{value.removeprefix('ban:')}"
        elif found.get(name, value) != value:
            raise UserError(f"'{name}' is set twice: to '{found[name]}' and to '{value}'", "say one of the two")
        found[name] = value
    return found


# Columns of the comparison that fit a terminal; the report has them all.
SHORT = {
    "model": "model",
    "data": "data",
    "seeds": "seeds",
    "accuracy": "accuracy",
    "concept_accuracy": "concepts",
    "intervention_area": "area",
    "accuracy_fully_corrected": "corrected",
    "explanation_size": "size",
    "training_minutes": "minutes",
}


def print_comparison(comparison: Any) -> None:
    """The comparison's table at the terminal."""
    rows = comparison.table()
    present = [key for key in SHORT if rows and key in rows[0]]
    shown = [{SHORT[key]: row[key] for key in present} for row in rows]
    print_table(shown, [SHORT[key] for key in present], comparison.title or None)
    console.print(
        "concepts: mean accuracy over concept groups; area: mean accuracy while more and more groups are corrected; "
        "corrected: accuracy with all of them corrected; size: units that make up 90 % of an explanation",
        style="dim",
    )


def print_table(rows: list[dict[str, Any]], columns: Iterable[str], title: str | None) -> None:
    """A table; numbers to the right, NaN as a dash."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[_cell(row.get(column)) for column in columns])
    console.print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
