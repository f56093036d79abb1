"""The page of a comparison: everything inside, nothing to fetch, nothing to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrarium.eval.explanations.heat import data_address, smaller
from vitrarium.eval.report import tables
from vitrarium.eval.report.breakdown import by_class, by_concept, by_condition
from vitrarium.eval.report.curves import policy_title, scope_title
from vitrarium.eval.report.glossary import GLOSSARY
from vitrarium.eval.report.looking import units_table
from vitrarium.eval.report.plots import legend_note
from vitrarium.eval.report.protocol import protocol
from vitrarium.eval.report.ranks import rank
from vitrarium.eval.report.rows import plain_rows
from vitrarium.eval.report.sentences import balance, falling, in_short
from vitrarium.eval.report.style import Palette

if TYPE_CHECKING:
    from vitrarium.eval.report.comparison import Comparison
    from vitrarium.eval.report.writing import Figure


def page(comparison: Comparison, figures: Sequence[Figure], palette: Palette) -> str:
    """The text of ``index.html``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("vitrarium.eval.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The style sheet is a file of this package, so it may enter the page as it is.
    style = Markup(environment.loader.get_source(environment, "report.css")[0])  # type: ignore[union-attr]
    content = {
        "title": comparison.title,
        "about": comparison.about,
        "style": style,
        "summary": _summary(comparison),
        "chapters": [_chapter(comparison, data, figures, palette) for data in comparison.datasets],
        "examples": [_example(comparison, e, palette) for e in comparison.examples],
        "glossary": GLOSSARY,
        "protocol": protocol(comparison.runs, comparison.rows, comparison.command),
        "notes": comparison.notes,
        "runs": [{"name": run.name, "minutes": f"{run.minutes:.1f}"} for run in comparison.runs],
    }
    return environment.get_template("report.html").render(content)


def _summary(comparison: Comparison) -> str:
    """One line under the title."""
    models, runs = len(comparison.rows), len(comparison.runs)
    minutes = sum(run.minutes for run in comparison.runs)
    long = f"{60 * minutes:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    long = f"{minutes / 60:.1f} hours" if minutes > 120 else long
    sets = ", ".join(comparison.datasets)
    return (
        f"{models} model{'s' * (models != 1)} from {runs} training run{'s' * (runs != 1)} on {sets}, "
        f"{long} of training, judged on the {comparison.runs[0].split} split."
    )


def _chapter(comparison: Comparison, data: str, figures: Sequence[Figure], palette: Palette) -> dict[str, Any]:
    """Everything about one data set."""
    rows = [row for row in comparison.rows if row.data == data]
    plain, base = plain_rows(rows), comparison.base(data)
    own = [figure for figure in figures if figure.data == data]
    curves = [curve for figure in own for curve in figure.curves]
    several = len({row.backbone for row in rows}) > 1
    balances = []
    for row in rows:
        yardstick = comparison.base(data, row.backbone)
        if yardstick is not None and row is not yardstick and not row.sweep:
            balances.append(balance(row, yardstick, comparison.columns, curves))
    return {
        "data": data,
        "mark": tables.anchor(data),
        "base": None if base is None else f"{base.title} on the same backbone" if several else base.label,
        "baseline": comparison.baseline,
        "in_short": in_short([r for r in rows if base is None or r.backbone == base.backbone], base, curves),
        "balances": [{"said": b, "colour": palette.colours[b.row.preset]} for b in balances],
        "table": tables.main_table(rows, comparison.columns, palette),
        "pareto": [
            {"image": data_address(f.png), "title": f.title, "note": legend_note(f.plane)} for f in own if f.plane
        ],
        "curves": _scopes([f for f in own if f.curves]),
        "risks": [{"image": data_address(f.png), "title": f.title} for f in own if f.risks],
        "selective": tables.selective_table(plain, comparison.columns, palette),
        "units": units_table(plain, comparison.columns, palette),
        "by_concept": tables.heat_table(by_concept(plain), palette),
        "by_class": tables.heat_table(by_class(plain), palette),
        "by_condition": tables.heat_table(by_condition(plain), palette),
        "ranks": tables.rank_table(plain, rank(plain, comparison.columns), palette),
        "costs": tables.cost_table(plain, comparison.columns, palette),
    }


def _scopes(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Curves, scope by scope, with what falls in words."""
    found = []
    for scope in dict.fromkeys(f.curves[0].scope for f in figures):
        own = [f for f in figures if f.curves[0].scope == scope]
        policies = [
            {"image": data_address(f.png), "title": f.title, "policy": policy_title(f.curves[0].policy)} for f in own
        ]
        first = min(own, key=lambda f: f.curves[0].policy != "random")
        found.append({"title": scope_title(scope), "policies": policies, "falling": falling(first.curves)})
    return found


def _example(comparison: Comparison, example: dict[str, Any], palette: Palette) -> dict[str, Any]:
    """One image with its explanations, in the order of the table."""
    titles = {row.preset: row.title for row in comparison.rows}
    order = [p for p in titles if p in example["png"]] + [p for p in example["png"] if p not in titles]
    pictures = [
        {
            "name": titles.get(preset, preset),
            "colour": palette.colours.get(preset, "#5d6975"),
            "image": data_address(smaller(example["png"][preset])),
        }
        for preset in order
    ]
    return {"title": example["title"], "credit": example["credit"], "pictures": pictures}
